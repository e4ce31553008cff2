"""`dim-hf train`: the job of `examples/train.py` under another name."""

import click

from dim_hf.cli.errors import user_errors
from dim_hf.cli.json_text import echo_json


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Exit codes: 0 trained, 1 wrong data or arguments, or a dry run that does not fit, 2 wrong options, 143 "
    "ended by SIGTERM with a checkpoint. For programs: --dry_run --json, and results.json of the run.\n\n"
    "Example: dim-hf train --config examples/configs/demo.yaml --max_steps 200 --rho 0.02",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="YAML file of fields and values.")
@click.option(
    "--start",
    type=click.Path(exists=True, dir_okay=False),
    help="YAML file of a run that is trained first, in start/ of the output folder, and whose network this one starts "
    "from. Fields that follow count for both where they are about data, network or machine, else for this run.",
)
@click.option("--fields", is_flag=True, help="List every field with its default and its legal values, and leave.")
@click.option("--dry_run", is_flag=True, help="Take a few steps, print what the run will take, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report of a dry run as one JSON object.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def command(
    config: str | None, start: str | None, fields: bool, dry_run: bool, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Train a model; any field of the configuration can follow as `--field value`.

    SIGTERM (what schedulers send before they kill) ends the run after its step with a checkpoint and exit code 143;
    go on by the same command with `--resume_from_checkpoint last`. A dry run that does not fit has exit code 1.
    """
    from dim_hf.metrics.report import format_table
    from dim_hf.trainer.finished_jobs import job_from_start
    from dim_hf.trainer.job import dry_run_job, run_job
    from dim_hf.trainer.job_arguments import describe_fields, parse_job
    from dim_hf.trainer.launch import leave_processes

    if fields:
        click.echo(describe_fields())
        return
    with user_errors():
        if start and dry_run:
            raise click.UsageError(
                "--dry_run measures one run: give the file of --start as --config; the run after it can be measured "
                "when that is trained, by --model_name_or_path OUTPUT_DIR/start"
            )
        job = job_from_start(config, start, overrides) if start else parse_job(config, overrides)
        if dry_run:
            report = dry_run_job(job)
            if job.training.process_index == 0:
                if as_json:
                    echo_json(vars(report) | {"fits": report.fits, "hours": report.hours})
                else:
                    click.echo(report)
            raise SystemExit(0 if report.fits else 1)
        result = run_job(job)
        leave_processes()
    if result.trainer.is_world_process_zero():
        click.echo(f"\n{format_table(result.table, 'text')}\n\nModel, scores and curves: {result.output_dir}")
