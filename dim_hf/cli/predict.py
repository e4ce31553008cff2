"""`dim-hf predict`: masks of images, volumes and DICOM series, on their own grids."""

import json
from pathlib import Path
from typing import Any

import click

from dim_hf.cli.completion import complete_path
from dim_hf.cli.errors import user_errors
from dim_hf.cli.spelling import BOTH_SPELLINGS
from dim_hf.data.texts import numbered, printable


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 all done, 3 some images could not be predicted (they are named at the end), 1 nothing could "
    "be done, 2 wrong options.\n\n\b\nExamples:\n"
    "  dim-hf predict runs/dim scans/ masks/\n"
    "  dim-hf predict runs/prostate case.nii.gz masks/ --flips --uncertainty flips\n"
    "  dim-hf predict org/name data/manifest.csv masks/ --revision 1a2b3c --json",
)
@click.argument("model", shell_complete=complete_path)
@click.argument("source", metavar="INPUT", shell_complete=complete_path)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--plane",
    type=click.Choice(["axial", "coronal", "sagittal", "auto"]),
    help="Plane in which a 2D model goes through volumes; auto cuts across the coarsest axis.  [default: that of the "
    "training where it is recorded, else auto]",
)
@click.option("--flips", is_flag=True, help="Average over mirror images: 4 passes in 2D, 8 in 3D.")
@click.option("--largest-component", is_flag=True, help="Keep of each structure its largest connected part only.")
@click.option("--probabilities", is_flag=True, help="Write a map of each class's probability, too.")
@click.option(
    "--uncertainty",
    type=click.Choice(["entropy", "flips", "teacher-student"]),
    help="Write a map in [0, 1]: entropy, or disagreement of mirror images or of the two networks of a run.",
)
@click.option(
    "--window",
    nargs=3,
    type=click.IntRange(min=1),
    metavar="D H W",
    help="Sliding window of a 3D model, for volumes that do not fit the memory.  [default: volumes whole, as in "
    "training and evaluation]",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Of neighboring windows, as a share.",
)
@click.option("--channel", type=click.IntRange(min=0), help="Channel or time point of volumes that have several.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Images of a forward pass, at most."
)
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the first GPU, else cpu]")
@click.option("--revision", help="Commit, branch or tag of a model of the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Run the code that a model of the Hub brings along.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
@click.pass_context
def command(
    context: click.Context,
    model: str,
    source: str,
    output: Path,
    revision: str | None,
    device: str | None,
    trust_remote_code: bool,
    as_json: bool,
    no_progress: bool,
    **options: Any,
) -> None:
    """Write a mask for each image of INPUT into the folder OUT.

    MODEL is a folder or a name on the Hub. INPUT is a picture (PNG, JPEG, TIFF, BMP), a volume (NIfTI, MHA, MHD,
    NRRD), a folder of such files and of DICOM series, or a manifest. Masks lie on the grid of their images, in their
    format (JPEG and BMP give PNG, DICOM gives NIfTI), with labels.json and measurements.csv. What is complete is
    skipped when the command runs again. Research software, not a medical device.
    """
    from transformers.utils.logging import disable_progress_bar

    from dim_hf.inference.folder_prediction import predict_folder
    from dim_hf.inference.left_out import sentences
    from dim_hf.inference.predictor import Predictor

    disable_progress_bar()  # of loading weights
    with user_errors():
        options["window"] = options["window"] or None
        predictor = Predictor.from_pretrained(
            model,
            revision=revision,
            device=device,
            trust_remote_code=trust_remote_code,
            **options,
        )
        summary = predict_folder(predictor, source, output, progress=not no_progress)
    if as_json:
        click.echo(json.dumps({"model": model, "input": source, **summary.to_dict()}, indent=2, allow_nan=False))
    else:
        click.echo(
            f"{summary.predicted} predicted, {summary.skipped} skipped (complete), {len(summary.failed)} failed, in "
            f"{summary.seconds:.1f} s: {printable(output)}"
        )
        for sentence in sentences(summary.left_out):
            click.echo(sentence)
        if summary.flagged is not None and summary.false_alarm_rate is not None:
            rate = f"{summary.false_alarm_rate:.1%} would be flagged"
            promise = (
                f"at most {rate}"
                if summary.is_bound
                else (f"about {rate} on average over the sites; cross-fitted: no bound")
            )
            click.echo(
                f"{len(summary.flagged)} of {summary.predicted + summary.skipped} to review: unlike the images of the "
                f"sites that the model saw (of these, {promise})"
                + (f":\n{numbered(summary.flagged)}" if summary.flagged else "")
            )
        if summary.failed:
            said = numbered([printable(sentence) for _, sentence in summary.failed])
            click.echo(f"\nNot predicted (all of them in predictions.json):\n{said}", err=True)
    context.exit(3 if summary.failed else 0)
