"""What a visitor is told when something cannot be done: a sentence with advice, never a traceback."""

import functools
import html
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dim_hf.data.texts import printable

_LOG = logging.getLogger(__name__)
_LONGEST = 400  # characters of a sentence
UNEXPECTED = "Something went wrong on our side; nothing of yours was kept. Try again, or try another file."
BUSY = "Many visitors are using the demo right now. Wait a minute, then press the button again."
WRONG_TYPE = "A value has the wrong type or is out of range; give numbers as numbers, and files as uploaded files."
OUT_OF_MEMORY = "The machine ran out of memory for this file. Try a smaller one, or cut it to the part of interest."


class Refusal(ValueError):  # noqa: N818  it is no fault of the program
    """A request that is not answered, as a sentence for the visitor: what was found, and what to do."""


def sentence_of(error: BaseException) -> str:
    """What the visitor is told about an error; unexpected ones are logged and told politely.

    Args:
        error: A `Refusal` gives its own words; running out of memory has its own sentence; anything else may hold
            paths of the machine or a library's words, so that none of it is told.
    """
    if isinstance(error, Refusal):
        text = printable(error)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    _LOG.error("unexpected error in the demo", exc_info=error)
    return UNEXPECTED


def error_panel(sentence: str) -> str:
    """The page's panel for what could not be done; read out by screen readers when it appears."""
    return f'<div class="notice error" role="alert"><b>Not done.</b> {html.escape(sentence)}</div>'


def note_panel(sentence: str) -> str:
    """The page's panel for a quiet remark."""
    return f'<div class="notice" role="status">{html.escape(sentence)}</div>'


def warning_panel(sentence: str) -> str:
    """The page's panel for what the visitor should look at."""
    return f'<div class="notice warning" role="status">{html.escape(sentence)}</div>'


def shown_on_page(blank: Sequence[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate an event's function so that its errors appear in the tab's notice.

    The decorated function gives one output more, the first: the notice (HTML), empty when all went well. The notice
    may be given by the function itself, which then returns as many values as it has outputs.

    Args:
        blank: What the other outputs show when nothing was done; one value each.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def steps(*values: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
                try:
                    for found in function(*values, **named):
                        yield _with_notice(found, len(blank))
                except Exception as error:
                    yield (error_panel(sentence_of(error)), *blank)

            return steps

        @functools.wraps(function)
        def once(*values: Any, **named: Any) -> tuple[Any, ...]:
            try:
                return _with_notice(function(*values, **named), len(blank))
            except Exception as error:
                return (error_panel(sentence_of(error)), *blank)

        return once

    return decorate


def told_to_clients(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate an event of the API so that its errors reach `gradio_client` as sentences."""

    @functools.wraps(function)
    def once(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except Exception as error:
            import gradio as gr

            raise gr.Error(sentence_of(error), print_exception=False) from None

    return once


def refuse_wrong_types(page: Any) -> None:
    """Let a page answer values of wrong types with a sentence: Gradio would log them with a traceback.

    Args:
        page: The `gr.Blocks`, complete.
    """
    import gradio as gr

    prepare = page.preprocess_data

    async def checked(function: Any, inputs: list[Any], *values: Any, **named: Any) -> Any:
        try:
            for component, value in zip(function.inputs, inputs, strict=False):
                counted = isinstance(component, gr.Number | gr.Slider | gr.Dataset) and value is not None
                if counted and (isinstance(value, bool) or not isinstance(value, int | float)):
                    raise TypeError(f"{type(value).__name__} in place of a number")
                if counted:
                    float(value)  # whole numbers of any size may come
            return await prepare(function, inputs, *values, **named)
        except gr.Error as error:
            raise gr.Error(error.message, print_exception=False) from None
        except Exception as error:  # of its values, which may name files of visitors, nothing is logged
            _LOG.warning("a request was refused for its values: %s", type(error).__name__)
            raise gr.Error(WRONG_TYPE, print_exception=False) from None

    page.preprocess_data = checked


def _with_notice(found: Any, outputs: int) -> tuple[Any, ...]:
    values = found if isinstance(found, tuple) else (found,)
    return values if len(values) == outputs + 1 else ("", *values)
