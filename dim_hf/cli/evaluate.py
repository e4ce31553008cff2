"""`dim-hf evaluate`: scores that a reviewer can check, by site, with intervals."""

from pathlib import Path
from typing import Any

import click

from dim_hf.cli.errors import user_errors


@click.command(
    epilog="Examples: dim-hf evaluate runs/dim data/fundus --output_dir runs/dim/evaluation\n\n"
    "dim-hf evaluate --compare runs/dim/evaluation runs/supervised/evaluation"
)
@click.argument("model", required=False)
@click.argument("dataset", required=False)
@click.option("--output_dir", type=click.Path(path_type=Path, file_okay=False), help="Folder for tables and report.")
@click.option(
    "--protocol",
    type=click.Choice(["image", "volume-mm", "network", "midss-2d"]),
    default="image",
    show_default=True,
    help="image: each on its own grid; volume-mm: slices put together to patients' volumes, in mm; network: at the "
    "network's size, in pixels; midss-2d: likewise, and an empty prediction counts as 100.",
)
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train", "all"]),
    default="test",
    show_default=True,
    help="Images to score; test images that no row marks are those that the run held out.",
)
@click.option("--tolerance-mm", type=click.FloatRange(min=0), help="Tolerance of the NSD, in the unit of distances.")
@click.option("--against", multiple=True, help="Another evaluation of the same images to compare with.")
@click.option("--compare", nargs=2, metavar="A B", help="Compare two evaluations or cases.csv; no MODEL needed.")
@click.option("--metric", default="dice", show_default=True, help="What --compare compares.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--revision", help="Commit, branch or tag of a model of the Hub.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    model: str | None, dataset: str | None, compare: tuple[str, str] | None, metric: str, **options: Any
) -> None:
    """Score MODEL on the test images of DATASET, or compare two evaluations.

    MODEL is a folder or a name of the Hub; DATASET is what `dim-hf train --dataset` takes. Writes cases.csv,
    summary.csv, table.md, evaluation.json and report.html.
    """
    from dim_hf.evaluation.files import compare_files
    from dim_hf.metrics.summary import format_comparison_of_cases

    if compare:
        with user_errors():
            click.echo(format_comparison_of_cases(compare_files(*compare, metric), names=compare, metric=metric))
        return
    if model is None or dataset is None:
        raise click.UsageError("name MODEL and DATASET, or --compare two evaluations")
    with user_errors():
        _evaluate(model, dataset, **options)


def _evaluate(
    model: str,
    dataset: str,
    *,
    output_dir: Path | None,
    protocol: str,
    split: str,
    tolerance_mm: float | None,
    against: tuple[str, ...],
    batch_size: int,
    revision: str | None,
    no_progress: bool,
) -> None:
    from accelerate import PartialState

    from dim_hf.evaluation.evaluate import EvaluationOptions, evaluate_model
    from dim_hf.evaluation.files import read_cases, write_evaluation
    from dim_hf.evaluation.loading import load_model, load_source_for
    from dim_hf.evaluation.runs import provenance_of, read_run, rows_to_score
    from dim_hf.metrics.summary import format_summary

    run = read_run(model)
    network, processor = load_model(model, revision=revision)
    source = load_source_for(network, dataset)
    rows = rows_to_score(source.rows, split, run)
    others = {name: read_cases(name) for name in against}
    result = evaluate_model(
        network.to(PartialState().device),
        processor,
        rows,
        source.description,
        provenance_of(model, dataset, protocol, split, run),
        EvaluationOptions(protocol, tolerance_mm, batch_size, progress=not no_progress),
    )
    if not PartialState().is_main_process:
        return
    click.echo(format_summary(result.summary, "text"))
    folder = output_dir or Path(model if Path(model).is_dir() else Path(model).name) / f"evaluation-{protocol}"
    click.echo(f"\nReport: {write_evaluation(result, folder, against=others)}")
