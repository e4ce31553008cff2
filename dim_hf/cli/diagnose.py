"""`dim-hf diagnose`: sharpness, divergence between domains, loss landscape, teacher and student."""

from pathlib import Path

import click

from dim_hf.cli.completion import complete_path
from dim_hf.cli.errors import user_errors
from dim_hf.cli.json_text import echo_json
from dim_hf.cli.spelling import BOTH_SPELLINGS


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 done, 1 model or data cannot be read or measured, 2 wrong options.\n\n\b\nExample:\n"
    "  dim-hf diagnose runs/dim data/fundus --baseline runs/supervised --output-dir runs/dim/diagnosis",
)
@click.argument("model", shell_complete=complete_path)
@click.argument("dataset", shell_complete=complete_path)
@click.option(
    "--output-dir",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for figures, table.md and diagnosis.json.",
)
@click.option(
    "--baseline",
    shell_complete=complete_path,
    help="A model to measure on the same images, e.g. the supervised one: before and after.",
)
@click.option("--rho", default=0.05, show_default=True, help="ρ > 0, radius of the ball around the weights.")
@click.option("--adaptive", is_flag=True, help="ρ relative to the weights (ASAM).")
@click.option("--images", default=16, show_default=True, help="Labeled images of each domain, at most.")
@click.option("--pooled-images", default=8, show_default=True, help="Those for Hessian and landscape, in all.")
@click.option(
    "--unlabeled-images", default=48, show_default=True, help="Images of each domain for divergence and agreement."
)
@click.option("--split", type=click.Choice(["train", "validation", "test"]), help="Draw images of this split only.")
@click.option("--f-divergence", "f_divergences", multiple=True, help="Name of an f-divergence; may be repeated.")
@click.option("--extent", default=0.5, show_default=True, help="Half side of the landscape; 1 is a filter's own norm.")
@click.option("--seed", default=0, show_default=True, help="Of the drawn images and directions.")
@click.option("--quick", is_flag=True, help="Fewer steps and directions, no plane, no trace.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as one JSON object.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    model: str,
    dataset: str,
    output_dir: Path,
    baseline: str | None,
    f_divergences: tuple[str, ...],
    quick: bool,
    as_json: bool,
    no_progress: bool,
    **settings: float | str | None,
) -> None:
    """Measure how sharp the loss of MODEL is, how its predictions differ between the domains of DATASET, and more.

    MODEL is a folder or a name on the Hub; in the folder of a run or a checkpoint, teacher and student are compared,
    too. DATASET is a manifest (.csv, .parquet) or a folder that holds one, a folder of domains, a data set of the
    Hub, or a phantom (phantom:fundus).
    """
    from transformers.utils.logging import disable_progress_bar

    from dim_hf.data.sources import load_source
    from dim_hf.diagnostics.diagnose import diagnose, to_json, write_diagnosis
    from dim_hf.diagnostics.records import FULL, QUICK, Options
    from dim_hf.diagnostics.text import format_diagnosis
    from dim_hf.evaluation.files import check_writable
    from dim_hf.evaluation.runs import read_run, reading_of

    disable_progress_bar()  # of loading weights
    with user_errors():
        if f_divergences:
            settings["f_divergences"] = f_divergences
        options = Options(effort=QUICK if quick else FULL, **settings)
        source = load_source(dataset, **reading_of(dataset, read_run(model)))
        check_writable(output_dir)  # before minutes of measuring are lost
        found = diagnose(
            model,
            source,
            dataset=dataset,
            baseline=baseline,
            options=options,
            progress=not no_progress,
        )
        files = write_diagnosis(found, output_dir)
    if as_json:
        echo_json({**to_json(found), "files": files})
        return
    click.echo(f"\n{format_diagnosis(found, 'text')}\n\nWritten: {', '.join(map(str, files))}")
