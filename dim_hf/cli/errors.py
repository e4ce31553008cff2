"""How a command ends where the user can mend what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from dim_hf.data.texts import printable


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors of input and files into one sentence and exit code 1, without a traceback."""
    try:
        yield
    except UnicodeEncodeError as error:  # a path that the operating system gave as bytes
        name = printable(error.object)
        raise click.ClickException(f"{name} is no text in UTF-8, so it cannot be written down; rename it") from error
    except (ValueError, OSError, ImportError) as error:  # ImportError: an extra that is not installed
        raise click.ClickException(printable(error, keep="\n")) from error
    except MemoryError as error:
        raise click.ClickException(
            f"there is not enough memory ({printable(error) or 'none is left'}); use smaller images, fewer workers or "
            "a larger machine"
        ) from error
