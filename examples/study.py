"""Run a study, rows × labeled domain × seed with two stages each, and print or draw its tables.

python examples/study.py run examples/configs/study-fundus.yaml --runs runs/fundus \
  --results examples/results/fundus --dataset data/fundus
python examples/study.py table examples/results/fundus
python examples/study.py figure examples/results/fundus examples/figures/fundus_study.png

Run it again after an interruption: what is complete is passed over, an unfinished training goes on from its last
checkpoint. Any field of a job can follow `run`, for both stages.
"""

from pathlib import Path

import click

from dim_hf.cli.errors import user_errors


@click.group()
def main() -> None:
    """Run a study, or make the tables or the figure of its results."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("study", type=click.Path(exists=True, dir_okay=False))
@click.option("--runs", required=True, type=click.Path(file_okay=False), help="Folder of all runs, for weights.")
@click.option("--results", required=True, type=click.Path(file_okay=False), help="Folder of the JSON files.")
@click.option("--revision", help="Of the code; that of its git clone by default.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def run(study: str, runs: str, results: str, revision: str | None, overrides: tuple[str, ...]) -> None:
    """Run what is missing of STUDY, a YAML file as examples/configs/study-fundus.yaml."""
    from dim_hf.trainer.study import StudyRunner, load_study

    with user_errors():
        runner = StudyRunner(load_study(study, overrides), Path(runs), Path(results), revision)
        for _, file in runner.run():
            click.echo(file)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False))
@click.option("--baseline", default="supervised", show_default=True, help="Row that the others are compared with.")
def table(results: str, baseline: str) -> None:
    """Print the Markdown tables of the JSON files in RESULTS."""
    from dim_hf.trainer.study_records import read_records
    from dim_hf.trainer.study_table import format_study

    with user_errors():
        click.echo(format_study(read_records(Path(results)), baseline))


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False))
@click.argument("picture", type=click.Path(dir_okay=False))
@click.option("--baseline", default="supervised", show_default=True, help="Row that the others are compared with.")
def figure(results: str, picture: str, baseline: str) -> None:
    """Draw the JSON files in RESULTS: scores of each seed and differences, into PICTURE (.png, .svg, .pdf)."""
    from dim_hf.trainer.study_figure import study_figure
    from dim_hf.trainer.study_records import read_records

    with user_errors():
        click.echo(study_figure(read_records(Path(results)), picture, baseline))


if __name__ == "__main__":
    main()
