"""What a step costs: plain, sharpness-aware, teacher-student and full DiM, in milliseconds and as ratios.

python examples/benchmark.py --image_size 128 --hidden_sizes 16,32,64,128 --repeats 20

The settings take their steps in turn, round after round, so that a machine whose speed drifts slows
all of them alike; medians are compared. A plain step is the supervised one with the same number of
images in the network; the sharpness-aware one is the same with ρ > 0.
"""

import statistics
import tempfile
import time

import click
import torch
from torch.utils.data import Dataset

SETTINGS = {
    "plain": {"consistency_weight": 0.0, "divergence_weight": 0.0, "rho": 0.0, "labeled_batch_size": 8},
    "plain + SAM": {"consistency_weight": 0.0, "divergence_weight": 0.0, "rho": 0.05, "labeled_batch_size": 8},
    "teacher-student": {"divergence_weight": 0.0, "rho": 0.0},
    "DiM": {"rho": 0.05},
    "DiM, SAM each 2nd step": {"rho": 0.05, "sam_every": 2},
}


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


def make_stepper(settings: dict, image_size: int, hidden_sizes: list[int], folder: str):  # noqa: ANN201
    """A trainer ready to take single optimizer steps, and the function that takes one."""
    from dim_hf import DimTrainer, DimTrainingArguments, DimUNetConfig, DimUNetForSemanticSegmentation

    torch.manual_seed(0)
    model = DimUNetForSemanticSegmentation(DimUNetConfig(num_labels=3, hidden_sizes=hidden_sizes))
    args = DimTrainingArguments(output_dir=folder, max_steps=10**6, disable_tqdm=True, **settings)
    images = RandomImages(16, image_size)
    trainer = DimTrainer(model, args, labeled_dataset=images, unlabeled_dataset=images)
    loader = trainer.get_train_dataloader()
    wrapped, _ = trainer._prepare_for_training(10**6, loader, None)
    trainer.state.max_steps = 10**6
    batches = iter([])

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        trainer.training_step(wrapped, batch)
        trainer.accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.finish_optimizer_step()
        wrapped.zero_grad()
        trainer.state.global_step += 1
        if trainer.args.device.type == "cuda":
            torch.cuda.synchronize()

    return step


@click.command()
@click.option("--image_size", default=128, show_default=True)
@click.option("--hidden_sizes", default="16,32,64,128", show_default=True, help="Comma-separated channels.")
@click.option("--repeats", default=20, show_default=True, help="Timed steps of each setting, after two untimed ones.")
def main(image_size: int, hidden_sizes: str, repeats: int) -> None:
    """Print median step times and their ratios."""
    channels = [int(word) for word in hidden_sizes.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: make_stepper(s, image_size, channels, folder) for name, s in SETTINGS.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for round_number in range(repeats + 2):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if round_number >= 2:
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    # A knob that acts on some steps only is seen in the mean, not in the median.
    medians["DiM, SAM each 2nd step"] = statistics.fmean(times["DiM, SAM each 2nd step"])
    click.echo("| step | ms | x plain | x teacher-student |\n|---|---|---|---|")
    for name, value in medians.items():
        ratios = [value / medians[base] for base in ("plain", "teacher-student")]
        click.echo(f"| {name} | {1000 * value:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
