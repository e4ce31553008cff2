"""`dim-hf export`: a model as a graph for other programs."""

import json
from pathlib import Path

import click

from dim_hf.cli.completion import complete_path
from dim_hf.cli.errors import user_errors
from dim_hf.cli.spelling import BOTH_SPELLINGS
from dim_hf.data.texts import printable


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 exported and checked, 1 refused or not possible, and nothing was written, 2 wrong options."
    "\n\n\b\nExamples:\n"
    "  dim-hf export runs/fundus exported/fundus\n"
    "  dim-hf export org/name exported/name --format torch_export --revision 1a2b3c --json",
)
@click.argument("model", shell_complete=complete_path)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "graph_format",
    type=click.Choice(["onnx", "torch_export"]),
    default="onnx",
    show_default=True,
    help="onnx: model.onnx, for onnxruntime and others; torch_export: model.pt2, for torch.export.load.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in OUT.")
@click.option("--revision", help="Commit, branch or tag of a model of the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a model of the Hub brings along.")
@click.option("--json", "as_json", is_flag=True, help="Print what was exported as one JSON object.")
def command(
    model: str,
    output: Path,
    graph_format: str,
    overwrite: bool,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Write MODEL as a graph into the new folder OUT, which appears when it is complete and checked.

    MODEL is a folder or a name on the Hub. The graph takes any number of images of any size; its logits are compared
    with the network's before it appears. The processor's settings and the class names travel along, in the graph and
    beside it, with a script that needs onnxruntime and numpy alone. Research software, not a medical device.
    """
    with user_errors():
        from transformers.utils.logging import disable_progress_bar

        from dim_hf.inference.export.exporting import export_model

        disable_progress_bar()  # of loading weights
        report = export_model(
            model,
            output,
            graph_format,
            revision=revision,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, allow_nan=False))
        return
    for name, size in report.files.items():
        click.echo(f"{size:>12,} bytes  {printable(output / name)}")
    click.echo(
        f"Takes {report.sizes}. Largest difference from the network in {len(report.checks)} checks: "
        f"{report.difference:.1g}."
    )
