"""`dim-hf completion`: what a shell needs to complete commands, options and their values."""

import click
from click.shell_completion import CompletionItem, get_completion_class

SHELLS = {
    "bash": ('eval "$(dim-hf completion bash)"', "~/.bashrc"),
    "zsh": ('eval "$(dim-hf completion zsh)"', "~/.zshrc"),
    "fish": ("dim-hf completion fish | source", "~/.config/fish/config.fish"),
}
_PROGRAM = "dim-hf"


@click.command(
    epilog="\b\nOne line in the shell's own file:\n"
    + "\n".join(f"  {file}: {line}" for line, file in SHELLS.values())
    + "\n\nExit codes: 0 printed, 2 no such shell."
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
def command(shell: str) -> None:
    """Print the completion of SHELL: commands, options, their values, files and folders."""
    from dim_hf.cli import main

    completion = get_completion_class(shell)
    assert completion is not None, "click knows all of SHELLS"
    click.echo(completion(main, {}, _PROGRAM, f"_{_PROGRAM.upper().replace('-', '_')}_COMPLETE").source())


def complete_path(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders for an argument that may also be a name on the Hub or of a phantom."""
    return [CompletionItem(incomplete, type="file")]


def complete_layout(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Layouts of `dim-hf import`."""
    from dim_hf.data.importers.registry import LAYOUTS

    return [CompletionItem(name) for name in LAYOUTS if name.startswith(incomplete)]
