"""Run settings of the method beside each other, with several seeds, and tabulate them.

python examples/ablation.py --config examples/configs/nuclei.yaml --seeds 3 --output_dir runs/nuclei

The table and the figure are written into the output folder. Run it again after an interruption:
finished runs are read back, the unfinished one goes on from its last checkpoint.
"""

from pathlib import Path

import click

from dim_hf.cli.errors import user_errors
from dim_hf.trainer.ablations import ABLATIONS

# Where weak_view_ratio is 0, supervised-strong is supervised once more but for the running statistics.
_SETTINGS = (*(name for name in ABLATIONS if name != "supervised-strong"), "upper-bound")


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False), help="YAML of the full method.")
@click.option("--settings", default=",".join(_SETTINGS), show_default=True, help="With commas.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Number of seeds: 0, 1, …")
@click.option("--output_dir", required=True, type=click.Path(file_okay=False), help="Folder of all runs.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def main(config: str, settings: str, seeds: int, output_dir: str, overrides: tuple[str, ...]) -> None:
    """Compare settings of one configuration with equal labels, steps and seeds."""
    from dim_hf.metrics.report_figures import seed_bars
    from dim_hf.trainer.comparison import format_summary, run_settings, scores_by_seed, stamp_of, write_summary
    from dim_hf.trainer.job_arguments import config_words

    folder = Path(output_dir)
    with user_errors():
        names = [name.strip() for name in settings.split(",")]
        outcomes = run_settings([*config_words(config), *overrides], names, range(seeds), folder)
    text = "\n".join([format_summary(outcomes), format_summary(outcomes, "hd95", factor=1.0)])
    (folder / "summary.md").write_text(text, encoding="utf-8")
    write_summary(outcomes, folder / "summary.csv")
    seed_bars(scores_by_seed(outcomes), folder / "sites.png", note=stamp_of(outcomes))
    click.echo(text)


if __name__ == "__main__":
    main()
