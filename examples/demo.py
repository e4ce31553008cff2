"""The main job in a few minutes: DiM beside the supervised baseline on a multi-site phantom.

python examples/demo.py --config examples/configs/demo.yaml

Both get the same labels (one site), steps and seed. Prints a per-site table; writes overlays,
curves and bars as PNG; leaves each model in a folder that `from_pretrained` loads.
"""

import shutil
import time
from pathlib import Path

import click

from dim_hf.cli.errors import user_errors

BASELINE, METHOD = "supervised", "dim"
SHORT = ["--max_steps", "30", "--phantom_images_per_domain", "16", "--num_labeled", "8", "--num_validation", "4"]


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--config", default="examples/configs/demo.yaml", type=click.Path(exists=True, dir_okay=False))
@click.option("--output_dir", default="runs/demo", show_default=True, type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True, help="Seed of network, streams and draws.")
@click.option("--short", is_flag=True, help="A few steps, to see that everything runs; the scores mean nothing.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def main(config: str, output_dir: str, seed: int, short: bool, overrides: tuple[str, ...]) -> None:
    """Train the baseline and DiM, and show both."""
    start = time.monotonic()
    from dim_hf.metrics.figures import site_bars
    from dim_hf.metrics.report import format_comparison, format_table
    from dim_hf.trainer.comparison import setting_job
    from dim_hf.trainer.job import run_job
    from dim_hf.trainer.job_arguments import config_words
    from dim_hf.trainer.job_identity import JOB_FILE

    words = [*config_words(config), *(SHORT if short else []), *overrides]
    folder = Path(output_dir)
    results = {}
    for setting in (BASELINE, METHOD):
        click.echo(f"\n== {setting} ==")
        with user_errors():
            job = setting_job(words, setting, seed, folder / setting)
            # A demo starts anew. Only a folder that a run has marked as its own is removed.
            job.training.resume_from_checkpoint = None
            if (folder / setting / JOB_FILE).exists():
                shutil.rmtree(folder / setting)
            results[setting] = run_job(job)
    tables = {setting: result.table for setting, result in results.items()}
    for setting, table in tables.items():
        click.echo(f"\n{setting}\n{format_table(table, 'text')}")
    click.echo("\nDice, mean of structures\n" + format_comparison(tables, style="text"))
    site_bars(tables, folder / "sites.png")
    draw_overlays(results, folder / "overlays.png")
    click.echo(f"Figures: {folder}/overlays.png, {folder}/sites.png, {folder}/{METHOD}/curves.png")
    click.echo(f'Model:   AutoModelForSemanticSegmentation.from_pretrained("{folder}/{METHOD}")')
    click.echo(f"Done in {time.monotonic() - start:.0f} s.")


def draw_overlays(results: dict, path: Path) -> None:
    """One test image of each site: the reference, and what both models say."""
    from dim_hf.metrics.figures import overlay_sheet

    first = next(iter(results.values()))
    sites = list(first.test)
    samples = [first.test[site][0] for site in sites]
    overlay_sheet(
        [sample["pixel_values"].numpy() for sample in samples],
        [sample["labels"].numpy() for sample in samples],
        {setting: [result.predictions[site][0] for site in sites] for setting, result in results.items()},
        sites,
        first.trainer.structures,
        path,
    )


if __name__ == "__main__":
    main()
