"""The tables of the README's scaling plan, from the networks themselves: python examples/scaling_plan.py.

Memory is counted, not measured; times are the formula of the README, not measurements of clusters.
"""

import click
import torch

# Channels by level, spatial dimensions.
NETWORKS = {
    "U-Net 16..128": ([16, 32, 64, 128], 2),
    "U-Net 16..256": ([16, 32, 64, 128, 256], 2),
    "U-Net 32..512": ([32, 64, 128, 256, 512], 2),
    "U-Net 64..1024": ([64, 128, 256, 512, 1024], 2),
    "U-Net 64..1024, 3D": ([64, 128, 256, 512, 1024], 3),
}
TIMED = ("U-Net 16..256", "U-Net 64..1024", "U-Net 64..1024, 3D")
BYTES = 4  # float32
GPUS_PER_MACHINE = 8
# Copies of the weights in memory: weights, teacher, gradient, two moments of AdamW, the perturbation's copy.
COPIES = {"weights": 1, "teacher": 1, "gradient": 1, "AdamW": 2, "copy for the perturbation": 1}
SAVED = 4  # weights, teacher and two moments


def parameters(hidden_sizes: list[int], spatial_dims: int) -> int:
    """Weights of the network with three classes; nothing is allocated."""
    from dim_hf import DimUNetConfig, DimUNetForSemanticSegmentation

    config = DimUNetConfig(num_labels=3, hidden_sizes=hidden_sizes, spatial_dims=spatial_dims)
    with torch.device("meta"):
        return sum(p.numel() for p in DimUNetForSemanticSegmentation(config).parameters())


def added_ms(gradient_bytes: int, gpus: int, network_bytes_per_s: float, machine_bytes_per_s: float) -> float:
    """Milliseconds of one ring all-reduce inside each machine and then between the machines."""
    machines = gpus // GPUS_PER_MACHINE
    inside = 2 * (GPUS_PER_MACHINE - 1) / GPUS_PER_MACHINE * gradient_bytes / machine_bytes_per_s
    between = 2 * (machines - 1) / machines * gradient_bytes / network_bytes_per_s
    return 1000 * (inside + between)


def size(number: float) -> str:
    """Bytes as a person says them."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


@click.command()
@click.option("--machine_gb_s", default=200.0, show_default=True, help="Bandwidth inside a machine, GB/s.")
@click.option(
    "--network_gbit_s", default=(100.0, 400.0), multiple=True, help="Bandwidth of a machine's network, Gb/s."
)
def main(machine_gb_s: float, network_gbit_s: tuple[float, ...]) -> None:
    """Print the memory of a process by network, and the milliseconds that more GPUs add to a step."""
    counts = {name: parameters(*shape) for name, shape in NETWORKS.items()}
    click.echo(f"| network | P, million | {' | '.join(COPIES)} | sum | with several processes | a checkpoint |")
    click.echo("|---" * (len(COPIES) + 5) + "|")
    for name, count in counts.items():
        copies = [size(BYTES * count * copy) for copy in COPIES.values()]
        total = sum(COPIES.values())
        sums = [size(BYTES * count * n) for n in (total, total + 1, SAVED)]
        click.echo(f"| {name} | {count / 1e6:.3g} | {' | '.join([*copies, *sums])} |")
    columns = [(8, network_gbit_s[0])] + [(gpus, speed) for gpus in (64, 512) for speed in network_gbit_s]
    heads = [f"{gpus} GPUs" + (f", {speed:.0f} Gb/s" if gpus > GPUS_PER_MACHINE else "") for gpus, speed in columns]
    click.echo(f"\n| network | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for name in TIMED:
        times = [added_ms(BYTES * counts[name], n, speed * 1e9 / 8, machine_gb_s * 1e9) for n, speed in columns]
        click.echo(f"| {name} | {' | '.join(f'{2 * t:.1f} ({t:.1f})' for t in times)} |")


if __name__ == "__main__":
    main()
