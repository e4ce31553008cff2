"""What a step costs, in time and memory: plain, sharpness-aware, teacher-student, full DiM, and DiM with each knob.

python examples/benchmark.py                                                  # a small U-Net on the CPU
python examples/benchmark.py --device cuda --preset benchmark --bf16 --output costs.json

Each setting runs in processes of its own, in several rounds, so that a machine whose speed drifts slows all of them
alike, and none finds another's memory or precision; medians are compared. A plain step is the supervised one with the
same number of images in the network; `transformers.Trainer` is that step without this package's training step, on the
same views. Peak memory is what was allocated on the GPU at once; on a CPU it is what the
process took at most beyond what it held after its imports, with the allocator's waste.
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

IMAGES = 4  # labeled ones, and as many unlabeled
WARM_UP = 2
PRESETS = {
    "small": {"image_size": 128, "hidden_sizes": [16, 32, 64, 128]},
    "benchmark": {"image_size": 256, "hidden_sizes": [64, 128, 256, 512, 1024]},
}
_SUPERVISED = {"consistency_weight": 0.0, "divergence_weight": 0.0, "labeled_batch_size": 2 * IMAGES}
SETTINGS = {
    "transformers.Trainer": {**_SUPERVISED, "rho": 0.0, "trainer": "transformers"},
    "plain": {**_SUPERVISED, "rho": 0.0},
    "plain + SAM": {**_SUPERVISED, "rho": 0.05},
    "teacher-student": {"divergence_weight": 0.0, "rho": 0.0},
    "DiM": {},
    "DiM, teacher_flips": {"teacher_flips": True},
    "DiM, sam_every=2": {"sam_every": 2},
    "DiM, ascent_fraction=0.5": {"ascent_fraction": 0.5},
    "DiM, perturbation_scope=local": {"perturbation_scope": "local"},
    "DiM, variational critic": {"divergence_estimator": "variational"},
}
# Which of these the base settings have is chosen on the command line; DiM is also run with each of them changed.
SWITCHES = ("bf16", "channels_last", "torch_compile")
REFERENCE = "teacher-student"
AIM_TIME, AIM_MEMORY = 2.6, 1.15  # of the reference's; the memory beside one copy of the weights


class RandomImages(Dataset):
    """Noise with random masks: the cost does not depend on what the images show."""

    def __init__(self, count: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 3, size, size, generator=generator)
        self.masks = torch.randint(0, 3, (count, size, size), generator=generator, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.images[index], "labels": self.masks[index]}


class Clock(TrainerCallback):
    """Seconds of each optimizer step, without the waiting for its images."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.began = 0.0
        self.seconds: list[float] = []

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """The images are there."""
        self.began = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Weights and teacher have moved."""
        self.seconds.append(self._now() - self.began)


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Train for some steps in this process: seconds of each, peak memory and weights, in bytes."""
    from dim_hf import DimTrainer, DimTrainingArguments, DimUNetConfig, DimUNetForSemanticSegmentation

    images = RandomImages(16, task["image_size"])
    torch.manual_seed(0)
    on_gpu = task["device"] == "cuda"
    before = psutil.Process().memory_info().rss
    model = DimUNetForSemanticSegmentation(DimUNetConfig(num_labels=3, hidden_sizes=task["hidden_sizes"]))
    clock = Clock(on_gpu)
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"max_steps": WARM_UP + task["repeats"], "save_strategy": "no", "logging_strategy": "no"}
        fixed |= {"output_dir": folder, "use_cpu": not on_gpu, "disable_tqdm": True, "labeled_batch_size": IMAGES}
        arguments = {**fixed, "unlabeled_batch_size": IMAGES, "rho": 0.05, **task["arguments"]}
        trainer_class = _plain_trainer() if arguments.pop("trainer", None) else DimTrainer
        args = DimTrainingArguments(**arguments)
        trainer = trainer_class(model, args, labeled_dataset=images, unlabeled_dataset=images, callbacks=[clock])
        trainer.train()
    if trainer.skipped_steps:
        raise RuntimeError(f"{trainer.skipped_steps} steps were abandoned: their cost is not a step's")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "seconds": clock.seconds[WARM_UP:],
        "peak_memory": peak if on_gpu else peak - before,
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
    }


def _plain_trainer() -> type:
    """A trainer that takes the step of transformers, on our views and with our supervised loss."""
    from transformers import Trainer

    from dim_hf import DimTrainer
    from dim_hf.losses import supervised_loss

    class PlainTrainer(DimTrainer):
        training_step = Trainer.training_step

        def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
            batch = self._step_inputs(inputs)
            return supervised_loss(model(pixel_values=batch.pixel_values).logits, batch.labels)

        def finish_optimizer_step(self) -> None:
            """There is no teacher."""

    return PlainTrainer


def all_settings(switches: dict[str, bool]) -> dict[str, dict[str, Any]]:
    """Arguments of each setting; DiM once more with each switch changed."""
    settings = {name: {**switches, **changes} for name, changes in SETTINGS.items()}
    for name in SWITCHES:
        value = not switches[name]
        settings[f"DiM, {name}={str(value).lower()}"] = {**switches, name: value}
    return settings


def summarize(name: str, arguments: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table from all rounds of a setting."""
    seconds = [value for each in found for value in each["seconds"]]
    # A knob that acts on some steps only is seen in the mean, not in the median.
    typical = statistics.fmean if arguments.get("sam_every", 1) > 1 else statistics.median
    return {
        "setting": name,
        "arguments": arguments,
        "milliseconds": 1000 * typical(seconds),
        "peak_memory_mib": statistics.median(each["peak_memory"] for each in found) / 2**20,
        "weights_mib": found[0]["weights"] / 2**20,
        "device": found[0]["device"],
        "seconds": seconds,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """The figures, their ratios, and how DiM stands to its aims."""
    by_name = {row["setting"]: row for row in rows}
    click.echo("| step | ms | x plain | x teacher-student | peak memory, MiB | x teacher-student |")
    click.echo("|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row['milliseconds']:.0f}"]
        cells += [_ratio(row, by_name.get(base), "milliseconds") for base in ("plain", REFERENCE)]
        cells += [f"{row['peak_memory_mib']:.0f}", _ratio(row, by_name.get(REFERENCE), "peak_memory_mib")]
        click.echo(f"| {row['setting']} | {' | '.join(cells)} |")
    dim, base = by_name.get("DiM"), by_name.get(REFERENCE)
    if dim and base:
        allowed = AIM_MEMORY * base["peak_memory_mib"] + base["weights_mib"]
        click.echo(
            f"\nDiM takes {_ratio(dim, base, 'milliseconds')} times a teacher-student step (aim: at most {AIM_TIME}) "
            f"and {dim['peak_memory_mib']:.0f} MiB (aim: at most {AIM_MEMORY} times and a copy of the weights, "
            f"{allowed:.0f} MiB)"
        )


def _ratio(row: dict[str, Any], base: dict[str, Any] | None, key: str) -> str:
    return f"{row[key] / base[key]:.2f}" if base else "-"


def run_apart(task: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--task", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip()[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="small", show_default=True)
@click.option("--image_size", type=int, help="Pixels of each side; the preset's when not given.")
@click.option("--hidden_sizes", help="Comma-separated channels; the preset's when not given.")
@click.option("--bf16/--no-bf16", default=False, show_default=True)
@click.option("--channels_last/--no-channels_last", default=True, show_default=True)
@click.option("--compile/--no-compile", "torch_compile", default=False, show_default=True)
@click.option("--settings", "chosen", help="Names as in the table, separated by semicolons; all when not given.")
@click.option("--repeats", default=10, show_default=True, help="Timed steps a round, after two untimed ones.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file with all figures.")
@click.option("--task", hidden=True, help="What one process measures.")
def main(**options: Any) -> None:
    """Print what each setting's step takes, and the ratios."""
    if options["task"]:
        click.echo("\n" + json.dumps(measure(json.loads(options["task"]))))
        return
    settings = all_settings({name: options[name] for name in SWITCHES})
    chosen = [name.strip() for name in options["chosen"].split(";")] if options["chosen"] else list(settings)
    if unknown := sorted(set(chosen) - set(settings)):
        raise click.UsageError(f"no such setting: {', '.join(unknown)}; there are {'; '.join(settings)}")
    task = PRESETS[options["preset"]] | {"device": options["device"], "repeats": options["repeats"]}
    if options["image_size"]:
        task["image_size"] = options["image_size"]
    if options["hidden_sizes"]:
        task["hidden_sizes"] = [int(word) for word in options["hidden_sizes"].split(",")]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(options["rounds"]):
        for name in chosen:
            found[name].append(run_apart(task | {"arguments": settings[name]}))
    rows = [summarize(name, settings[name], found[name]) for name in chosen]
    click.echo(f"{rows[0]['device']}; {task['image_size']} pixels, channels {task['hidden_sizes']}\n")
    print_table(rows)
    if options["output"]:
        about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        content = {"environment": about, "task": task, "rounds": options["rounds"], "results": rows}
        options["output"].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
