"""The command line `dim-hf`: one thin module a subcommand, loaded when it is called."""

import importlib

import click

# Subcommand → its module in this package, and the line that the help shows without importing it.
COMMANDS = {
    "import": ("import_data", "Turn a benchmark's or hospital's layout into one manifest."),
    "doctor": ("doctor", "Find every fault of a data set before an hour is lost."),
    "train": ("train", "Train a model with DiM or one of its ablations."),
    "evaluate": ("evaluate", "Score a model by site, with intervals; compare two."),
    "predict": ("predict", "Masks for images, volumes and DICOM series, on their own grids."),
    "diagnose": ("diagnose", "Sharpness, divergence between domains, loss landscape."),
    "push": ("push", "Publish a finished run as a model on the Hub."),
    "demo": ("demo", "The models in a browser, on this machine."),
    "export": ("export", "Write a model as an ONNX or torch.export graph."),
    "completion": ("completion", "Complete commands and options in bash, zsh or fish."),
}


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they run, so that help stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the subcommands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one subcommand; None where there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return importlib.import_module(f"{__name__}.{module}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dim-hf")
def main() -> None:
    """Segment medical images from few labeled and many unlabeled scans of several hospitals."""
