"""How a command ends where the user can mend what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of input and files into one sentence and exit code 1, without a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:  # ImportError: an extra that is not installed
        raise click.ClickException(str(error)) from error
