"""`dim-hf push`: a finished run becomes a model on the Hub."""

from pathlib import Path

import click

from dim_hf.cli.errors import user_errors
from dim_hf.cli.json_text import echo_json
from dim_hf.cli.spelling import BOTH_SPELLINGS
from dim_hf.data.texts import printable


@click.command(
    context_settings=BOTH_SPELLINGS,
    epilog="Exit codes: 0 pushed (or, with --dry-run, could be), 1 refused or failed, 2 wrong options."
    "\n\nExample: dim-hf push runs/prostate my-lab/dim-prostate --private --licence cc-by-nc-4.0 --dry-run "
    '--intended-use "..." --data-statement "..."',
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Publish it for yourself or your organisation only.")
@click.option("--licence", default="", help="Licence of the weights, e.g. cc-by-nc-4.0.")
@click.option("--intended-use", default="", help="Who may use the model for what, and for what not.")
@click.option(
    "--data-statement",
    default="",
    help="Where the images come from, and on which ground they were used (consent, approval, public data).",
)
@click.option("--data-licence", help="Licence of the data, where its description does not say it.")
@click.option("--dataset-id", metavar="ORG/NAME", help="Name of the data set on the Hub, if it is there.")
@click.option("--keep-names", is_flag=True, help="Publish the names of cases and patients, not codes: public data.")
@click.option("--dry-run", is_flag=True, help="Print the card and what would be published; send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print address, or card and sizes, as one JSON object.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    run: Path,
    repo_id: str,
    private: bool,
    dry_run: bool,
    keep_names: bool,
    as_json: bool,
    no_progress: bool,
    **said: str | None,
) -> None:
    """Publish the finished RUN as the model ORG/NAME on the Hub, in one commit.

    Weights (safetensors), configuration, processor, the model's code, arguments, results by case and site, and a card
    written from them; nothing of this machine, and no names unless asked for. What is missing is listed and nothing
    sent: exit code 1.
    """
    with user_errors():
        from transformers.utils.logging import disable_progress_bar

        from dim_hf.hub.push import preview_push, push_run
        from dim_hf.hub.statements import Statements

        disable_progress_bar()  # of loading weights
        statements = Statements(**said)
        if dry_run:
            preview = preview_push(run, repo_id, statements, keep_names=keep_names)
            if as_json:
                echo_json({"model": repo_id, "address": None, "files": preview.sizes, "card": preview.card})
                return
            click.echo(printable(preview.card, keep="\n"))
            for path, size in preview.sizes.items():
                click.echo(f"{size:>12,} bytes  {path}", err=True)
            return
        address = push_run(run, repo_id, statements, private=private, keep_names=keep_names, progress=not no_progress)
        if as_json:
            echo_json({"model": repo_id, "address": address})
        else:
            click.echo(address)
