"""`dim-hf train`: the job of `examples/train.py` under another name."""

import click

from dim_hf.cli.errors import user_errors


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Example: dim-hf train --config examples/configs/demo.yaml --max_steps 200 --rho 0.02",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="YAML file of fields and values.")
@click.option("--fields", is_flag=True, help="List every field with its default and leave.")
@click.option("--dry_run", is_flag=True, help="Take a few steps, print what the run will take, and write nothing.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def command(config: str | None, fields: bool, dry_run: bool, overrides: tuple[str, ...]) -> None:
    """Train a model; any field of the configuration can follow as `--field value`.

    SIGTERM (what schedulers send before they kill) ends the run after its step with a checkpoint and exit code 143;
    go on by the same command with `--resume_from_checkpoint last`. A dry run that does not fit has exit code 1.
    """
    from dim_hf.metrics.report import format_table
    from dim_hf.trainer.job import dry_run_job, run_job
    from dim_hf.trainer.job_arguments import describe_fields, parse_job

    if fields:
        click.echo(describe_fields())
        return
    with user_errors():
        job = parse_job(config, list(overrides))
        if dry_run:
            report = dry_run_job(job)
            if job.training.process_index == 0:
                click.echo(report)
            raise SystemExit(0 if report.fits else 1)
        result = run_job(job)
    if result.trainer.is_world_process_zero():
        click.echo(f"\n{format_table(result.table, 'text')}\n\nModel, scores and curves: {result.output_dir}")
