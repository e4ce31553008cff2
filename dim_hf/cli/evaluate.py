"""`dim-hf evaluate`: scores that a reviewer can check, by site, with intervals."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dim_hf.cli.completion import complete_path
from dim_hf.cli.errors import user_errors
from dim_hf.cli.json_text import echo_json
from dim_hf.cli.spelling import BOTH_SPELLINGS


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 scored or compared, 1 model or data cannot be read or scored alike, 2 wrong options."
    "\n\n\b\nExamples:\n"
    "  dim-hf evaluate runs/dim data/fundus\n"
    "  dim-hf evaluate runs/dim data/prostate --protocol volume-mm --tolerance-mm 2\n"
    "  dim-hf evaluate --compare runs/dim/evaluation-image runs/supervised/evaluation-image",
)
@click.argument("model", required=False, shell_complete=complete_path)
@click.argument("dataset", required=False, shell_complete=complete_path)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for tables and report.  [default: MODEL/evaluation-PROTOCOL, with -SPLIT for another split "
    "than test, and -flips]",
)
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
@click.option(
    "--flips",
    is_flag=True,
    help="Average over mirror images, as `dim-hf predict --flips`: 4 passes in 2D, 8 in 3D.",
)
@click.option(
    "--tolerance-mm",
    type=click.FloatRange(min=0),
    help="Score the NSD, too, at this tolerance: in mm, or in pixels where distances are.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="FOLDER",
    shell_complete=complete_path,
    help="Evaluation of another model on the same images (or its cases.csv) to compare with; may be repeated.",
)
@click.option(
    "--compare",
    nargs=2,
    metavar="A B",
    shell_complete=complete_path,
    help="Compare two evaluations, A minus B; no MODEL needed.",
)
@click.option(
    "--metric",
    default="dice",
    show_default=True,
    help="What --compare compares: dice, jaccard, hd95, hd, asd, assd, nsd or volume_difference.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images of a forward pass."
)
@click.option("--revision", help="Commit, branch or tag of a model of the Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print scores and comparisons as one JSON object.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    model: str | None, dataset: str | None, compare: tuple[str, str] | None, metric: str, **options: Any
) -> None:
    """Score MODEL on the test images of DATASET, or compare two evaluations.

    MODEL is a folder or a name on the Hub. DATASET is a manifest (.csv, .parquet) or a folder that holds one, a folder
    of domains, a data set of the Hub, or a phantom (phantom:fundus); the run's own is read as the run read it. Writes
    cases.csv, summary.csv, table.md, evaluation.json and report.html, which opens offline.
    """
    if compare:
        _refuse_beside_compare()
        from dim_hf.evaluation.files import compare_files, compare_files_for_programs

        with user_errors():
            if options["as_json"]:
                echo_json(compare_files_for_programs(*compare, metric))
            else:
                click.echo(compare_files(*compare, metric, style="text"))
        return
    if model is None or dataset is None:
        raise click.UsageError("name MODEL and DATASET, or --compare two evaluations")
    if "metric" in _named():
        raise click.UsageError("--metric is of --compare; the evaluation of a model scores all metrics")
    if options["revision"] is not None and Path(model).is_dir():
        raise click.UsageError(f"--revision is of models of the Hub, and {model} is a folder; leave it out")
    with user_errors():
        _evaluate(model, dataset, **options)


def _named() -> set[str]:
    """Parameters that the user gave, whatever their values."""
    context = click.get_current_context()
    return {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}


def _refuse_beside_compare() -> None:
    useless = sorted(_named() - {"compare", "metric", "as_json"})
    if useless:
        shown = ", ".join(
            name.upper() if name in ("model", "dataset") else f"--{name.replace('_', '-')}" for name in useless
        )
        raise click.UsageError(f"--compare takes two evaluations as they are, so {shown} has no effect; leave it out")


def _evaluate(
    model: str,
    dataset: str,
    *,
    output_dir: Path | None,
    protocol: str,
    split: str,
    flips: bool,
    tolerance_mm: float | None,
    against: tuple[str, ...],
    batch_size: int,
    revision: str | None,
    as_json: bool,
    no_progress: bool,
) -> None:
    from transformers.utils.logging import disable_progress_bar

    from dim_hf.evaluation import files
    from dim_hf.evaluation.evaluate import EvaluationOptions, evaluate_model
    from dim_hf.evaluation.loading import load_source_for
    from dim_hf.evaluation.prediction import process_state
    from dim_hf.evaluation.runs import provenance_of, read_run, rows_to_score
    from dim_hf.inference.drift_file import find_statistics
    from dim_hf.inference.loading import load_network

    disable_progress_bar()  # of loading weights
    run = read_run(model)
    network, processor = load_network(model, revision)
    source = load_source_for(network, dataset, run)
    rows = rows_to_score(source.rows, split, run)
    others = {name: files.read_evaluation(name) for name in against}
    for name, other in others.items():
        files.check_protocols({"this evaluation": protocol, name: other.protocol})
    folder = output_dir or Path(model if Path(model).is_dir() else Path(model).name) / _folder_name(
        protocol, split, flips
    )
    if process_state().is_main_process:
        files.check_writable(folder)
    result = evaluate_model(
        network.to(process_state().device),
        processor,
        rows,
        source.description,
        provenance_of(model, dataset, protocol, split, run, rows=source.rows, scored=rows),
        EvaluationOptions(protocol, tolerance_mm, batch_size, flips, progress=not no_progress),
        statistics=find_statistics(model, revision),
    )
    if not process_state().is_main_process:
        return
    compared = files.compare_with(result, others)
    report = files.write_evaluation(result, folder, compared=compared)
    if as_json:
        echo_json(files.result_for_programs(result, compared=compared) | {"folder": folder, "report": report})
    else:
        click.echo(f"{files.format_result(result, 'text', compared=compared)}\n\nReport: {report}")


def _folder_name(protocol: str, split: str, flips: bool) -> str:
    """Scores of other images than test images, or predicted otherwise, go elsewhere."""
    return f"evaluation-{protocol}" + (f"-{split}" if split != "test" else "") + ("-flips" if flips else "")
