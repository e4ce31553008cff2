"""`dim-hf doctor`: every fault of a data set, named with file and fix."""

import json
from pathlib import Path

import click

from dim_hf.cli.completion import complete_path
from dim_hf.cli.errors import user_errors
from dim_hf.data.texts import printable


@click.command(
    epilog="Exit codes: 0 nothing worse than a note, 3 warnings, 4 errors; 1 the data set cannot be found or read at "
    "all, 2 wrong options.\n\nExample: dim-hf doctor data/fundus --html report.html"
)
@click.argument("dataset", shell_complete=complete_path)
@click.option("--class-names", help="Names of the classes 0..K-1, with commas, where the data state none.")
@click.option("--patient-pattern", help="Regular expression with one group that finds the patient in a file's stem.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a report that opens offline.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads, or processes for thousands of images.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
@click.pass_context
def command(
    context: click.Context,
    dataset: str,
    class_names: str | None,
    patient_pattern: str | None,
    html: Path | None,
    as_json: bool,
    workers: int | None,
    no_progress: bool,
) -> None:
    """Look at every file of DATASET and say what is wrong with it, and how to mend it.

    DATASET is a manifest (.csv, .parquet) or a folder that holds one, a folder of domains, a data set of the Hub, or
    a phantom (phantom:fundus).
    """
    from dim_hf.data.doctor.diagnosis import examine
    from dim_hf.data.doctor.report import write_report
    from dim_hf.data.doctor.text import format_text
    from dim_hf.data.sources import load_source

    with user_errors():
        names = [name.strip() for name in class_names.split(",")] if class_names else None
        source = load_source(dataset, class_names=names, patient_pattern=patient_pattern)
        options = {"num_workers": workers, "progress": not no_progress, "processes": True}
        diagnosis = examine(source.rows, source.description, **options)
        if html is not None:
            write_report(diagnosis, source.rows, html, dataset)
    if as_json:
        click.echo(json.dumps({"dataset": dataset, **diagnosis.to_dict()}, indent=2, allow_nan=False))
    else:
        click.echo(format_text(diagnosis, dataset))
        if html is not None:
            click.echo(f"\nReport: {printable(html)}")
    context.exit(diagnosis.exit_code)
