"""Train the small models that the browser demo ships with, on phantoms only.

python examples/train_demo_models.py            # all three, about half an hour on two CPU cores
python examples/train_demo_models.py --only volume

`fundus` is DiM and `fundus-baseline` the supervised baseline on the phantom of four fundus cameras, with the same
labels, steps and seed; its pictures are drawn at the sizes of photographs and reduced by the processor, as those of
visitors are, since a picture drawn small has other noise. `volume` is a 2D DiM model of the axial slices of prostate
phantoms, which go through `dim-hf import --slices` first. Each goes to dim_hf/demo/models/ with its scores by site.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from dim_hf.cli.errors import user_errors

MODELS = Path(__file__).resolve().parents[1] / "dim_hf" / "demo" / "models"
SHIPPED_BYTES = 4_000_000
_SHIPPED = ("config.json", "model.safetensors", "preprocessor_config.json", "site_statistics.json", "summary.csv")
_SHARED = (
    *("--hidden_sizes", "12", "24", "48", "96", "--labeled_batch_size", "4", "--unlabeled_batch_size", "4"),
    *("--learning_rate", "0.003", "--ema_decay", "0.98", "--teacher_buffers", "copied"),
    *("--teacher_statistics", "batch"),
    *("--confidence_threshold", "0.8", "--rampup_ratio", "0.3", "--image_size", "80", "--select", "last"),
    *("--eval_steps", "200", "--save_steps", "200", "--logging_steps", "50"),
)
_FUNDUS = ("--num_labeled", "16", "--num_validation", "6", "--labeled_view", "weak")
_PICTURES, _PICTURE_SIZES = 60, (256, 384, 512)  # of each camera; pixels, in turn
_VOLUME = ("--num_labeled", "120", "--num_validation", "48", "--intensity", "percentile", "--strong_view", "mri")
_PATIENTS, _SIZE, _SEED = 12, 96, 0  # of each scanner; pixels in the plane
_TEST_FRACTION = 0.25


def fundus_words(work: Path) -> list[str]:
    """Write fundus phantoms as pictures with a manifest, and train on those."""
    from dim_hf.data.description import DatasetDescription, write_description
    from dim_hf.data.manifest import write_manifest
    from dim_hf.data.phantoms import get_phantom, split_of

    folder, phantom = work / "pictures", get_phantom("fundus")
    if not (folder / "manifest.csv").exists():
        rows: dict[str, list[str]] = {name: [] for name in ("image", "label", "domain", "split")}
        for domain in phantom.domains:
            (folder / domain).mkdir(parents=True, exist_ok=True)
            for index in range(_PICTURES):
                image, label = draw_picture(folder, domain, index)
                values = (image, label, domain, split_of(index, _TEST_FRACTION))
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
        source = ["synthetic: phantom:fundus of dim-hf"]
        write_description(DatasetDescription(phantom.id2label, phantom.structures, 3, source=source), folder)
        write_manifest(rows, folder / "manifest.csv")
    return ["--dataset", str(folder), *_FUNDUS]


def draw_picture(folder: Path, domain: str, index: int) -> tuple[str, str]:
    """Write one fundus phantom with its mask; their paths are relative to the folder."""
    import PIL.Image

    from dim_hf.data.phantoms import render_phantom

    size = _PICTURE_SIZES[index % len(_PICTURE_SIZES)]
    pixels = render_phantom("fundus", domain=domain, index=index, size=size, seed=_SEED)
    paths = f"{domain}/{domain}_{index:02d}.png", f"{domain}/{domain}_{index:02d}_mask.png"
    for path, values in zip(paths, pixels, strict=True):
        PIL.Image.fromarray(values).save(folder / path, compress_level=1)
    return paths


def volume_words(work: Path) -> list[str]:
    """Write prostate phantoms as the SAML collection lies on disk, import their slices, and train on those."""
    from dim_hf.data.importers.cases import ImportOptions
    from dim_hf.data.importers.importing import ImportJob, import_dataset
    from dim_hf.data.importers.writer import WriteOptions
    from dim_hf.data.phantoms import get_phantom, render_phantom
    from dim_hf.data.volumes.volume import Volume, write_nifti

    if not (work / "slices").exists():
        for domain in get_phantom("prostate_3d").domains:
            (work / "volumes" / domain).mkdir(parents=True, exist_ok=True)
            affine = phantom_affine(domain, _SIZE)
            for index in range(_PATIENTS):
                image, label = render_phantom("prostate_3d", domain=domain, index=index, size=_SIZE, seed=_SEED)
                case = work / "volumes" / domain / f"Case{index:02d}"
                write_nifti(Volume((image.T * 1000).astype(np.int16), affine), f"{case}.nii.gz")
                write_nifti(Volume(np.ascontiguousarray(label.T), affine), f"{case}_Segmentation.nii.gz")
        job = ImportJob(
            *("saml", work / "volumes", work / "slices"),
            find=ImportOptions(),
            write=WriteOptions(plane="axial"),
            test_fraction=_TEST_FRACTION,
            licence="Apache-2.0",
            origin="synthetic: phantom:prostate_3d of dim-hf",
        )
        import_dataset(job)
    return ["--dataset", str(work / "slices"), *_VOLUME]


def phantom_affine(domain: str, size: int) -> np.ndarray:
    """Voxel index (x, y, z) of a prostate phantom to RAS+ mm: columns to the left, rows to the back, slices up."""
    from dim_hf.data.phantom_prostate import volume_spacing

    z, y, x = volume_spacing(domain, size)
    return np.diag([-x, -y, z, 1.0])


# Setting, steps, and the data's fields.
RECIPES: dict[str, tuple[str, int, Callable[[Path], list[str]]]] = {
    "fundus": ("dim", 400, fundus_words),
    "fundus-baseline": ("supervised", 400, fundus_words),
    "volume": ("dim", 1000, volume_words),
}


@click.command()
@click.option("--only", type=click.Choice(list(RECIPES)), multiple=True, help="Train these; all by default.")
@click.option("--output_dir", default="runs/demo-models", show_default=True, type=click.Path(path_type=Path))
@click.option("--models_dir", default=MODELS, type=click.Path(path_type=Path), help="Where the finished models go.")
@click.option("--max_steps", type=click.IntRange(min=1), help="Optimizer steps; those of the recipe by default.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
def main(only: tuple[str, ...], output_dir: Path, models_dir: Path, max_steps: int | None, seed: int) -> None:
    """Train the models of the demo, and put them where the demo finds them."""
    from dim_hf.metrics.report import format_table
    from dim_hf.trainer.comparison import setting_job
    from dim_hf.trainer.job import run_job

    for name in only or RECIPES:
        setting, steps, words = RECIPES[name]
        click.echo(f"\n== {name} ({setting}) ==")
        with user_errors():
            fields = [*_SHARED, *words(output_dir), "--max_steps", str(max_steps or steps), "--warmup_steps", "30"]
            result = run_job(setting_job(fields, setting, seed, output_dir / name))
            click.echo(format_table(result.table, "text"))
            ship(output_dir / name, models_dir / name)
    total = sum(path.stat().st_size for path in models_dir.rglob("*") if path.is_file())
    click.echo(f"{models_dir}: {total / 1e6:.2f} MB")
    if total > SHIPPED_BYTES:
        raise click.ClickException(f"the models take {total} bytes, above {SHIPPED_BYTES}; use fewer hidden_sizes")


def ship(run: Path, target: Path) -> None:
    """Copy what a prediction needs of a finished run; the old model is replaced when the new one is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        fresh = Path(partial) / target.name
        fresh.mkdir()
        for file in _SHIPPED:
            if (run / file).is_file():
                shutil.copyfile(run / file, fresh / file)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


if __name__ == "__main__":
    main()
