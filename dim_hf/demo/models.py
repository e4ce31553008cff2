"""Which models the demo shows: the one that was asked for, the one on the Hub, or those that are shipped."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, constants

from dim_hf.demo.settings import HUB_MODEL, DemoSettings
from dim_hf.inference.loading import is_local
from dim_hf.inference.predictor import Predictor

_HUB_SECONDS = 3
_WINDOW = (96, 96, 96)  # of 3D models that take volumes of any size
SHIPPED = Path(__file__).parent / "models"
_PHANTOM_NOTE = "trained on computer-drawn phantoms only, so what it says about a patient's image means nothing"


@dataclass(frozen=True, eq=False)
class DemoModel:
    """A model that visitors can try.

    Attributes:
        name: Short name, such as "fundus-baseline".
        title: What the page calls it.
        predictor: What predicts.
        kind: "fundus" (pictures) or "volume".
        origin: "hub", "folder" or "shipped".
        notice: A sentence for the page: which model it is and why.
        folder: Where its files lie, for what lies beside the weights; None on the Hub.
    """

    name: str
    title: str
    predictor: Predictor
    kind: str
    origin: str
    notice: str
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class DemoModels:
    """The models of the tabs.

    Attributes:
        fundus: Of pictures.
        fundus_baseline: What it is compared with.
        volume: Of volumes.
        notices: Sentences for the page: what was asked for and could not be loaded, and what is shown instead.
    """

    fundus: DemoModel
    fundus_baseline: DemoModel
    volume: DemoModel
    notices: tuple[str, ...] = ()


def load_models(settings: DemoSettings) -> DemoModels:
    """Load what the settings name, and the shipped models for the rest.

    A model of pictures in color takes the place of `fundus`, any other the place of `volume`.

    Args:
        settings: `model` and `compare_model` count. A model that was asked for by name must load; `HUB_MODEL`, which
            is tried when none was, need not.

    Raises:
        ValueError: If a model that was asked for cannot be loaded, or a shipped one is missing.
    """
    notices: list[str] = []
    # Those that may be refused come first.
    compared = _named(settings.compare_model, "compared") if settings.compare_model else None
    if compared is not None and compared.kind != "fundus":
        raise ValueError(f"{settings.compare_model} segments no pictures in color; give another model to compare")
    chosen = _named(settings.model, "chosen") if settings.model else _from_hub(notices)
    fundus, baseline, volume = (_shipped(name) for name in ("fundus", "fundus-baseline", "volume"))
    baseline = compared or baseline
    if chosen is not None and chosen.kind == "fundus":
        fundus = chosen
    elif chosen is not None:
        volume = chosen
    return DemoModels(fundus, baseline, volume, tuple(notices))


def _shipped(name: str) -> DemoModel:
    titles = {
        "fundus": "DiM, shipped model",
        "fundus-baseline": "Supervised baseline, shipped model",
        "volume": "DiM on slices, shipped model",
    }
    folder = SHIPPED / name
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} lacks its model; run examples/train_demo_models.py, or install the package again")
    predictor, kind = _predictor(folder, device="cpu")
    return DemoModel(name, titles[name], predictor, kind, "shipped", f"{titles[name]}: {_PHANTOM_NOTE}.", folder)


def _named(name: str, role: str) -> DemoModel:
    predictor, kind = _predictor(name)
    local = is_local(name)
    title = Path(name).resolve().name if local else name
    origin = "folder" if local else "hub"
    return DemoModel(
        role,
        title,
        predictor,
        kind,
        origin,
        f"{title}: {role} by the operator of this demo.",
        Path(name) if local else None,
    )


def _from_hub(notices: list[str]) -> DemoModel | None:
    try:
        if constants.HF_HUB_OFFLINE or _hub_answers():  # offline: what was downloaded before
            return _named(HUB_MODEL, "default")
    except ValueError:
        pass
    notices.append(
        f"The model {HUB_MODEL} could not be loaded from the Hub; small models that come with the demo are shown."
    )
    return None


def _hub_answers() -> bool:
    """Whether the Hub has the default model and says so soon; loading it would try for a minute."""
    print(f"Trying {HUB_MODEL} on the Hub…", flush=True)
    answers = []

    def ask() -> None:
        try:
            answers.append(HfApi().model_info(HUB_MODEL, timeout=_HUB_SECONDS))
        except Exception:  # whatever is wrong there: the shipped models are shown
            return

    # A thread: looking up a name obeys no time limit.
    asking = threading.Thread(target=ask, name="dim-demo-hub", daemon=True)
    asking.start()
    asking.join(_HUB_SECONDS + 1)
    return bool(answers)


def _predictor(name: str | Path, device: str | None = None) -> tuple[Predictor, str]:
    """What predicts, and the kind of its images; the uncertainty is computed where the page shows it: of pictures."""
    predictor = Predictor.from_pretrained(name, device=device)
    config = predictor.networks[0].config
    if predictor.spatial_dims == 3 and getattr(predictor.processor, "size", None) is None:
        # The visitor chooses the size, so that only a window bounds the memory of a pass.
        predictor.options = replace(predictor.options, window=_WINDOW)
    if predictor.spatial_dims != 2 or int(getattr(config, "num_channels", 3)) != 3:
        return predictor, "volume"
    predictor.options = replace(predictor.options, uncertainty="entropy")
    return predictor, "fundus"
