"""Reports for programs: one JSON object on standard output, and nothing else there."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click


def echo_json(values: Mapping[str, Any]) -> None:
    """Print one object; what JSON does not know is written as `plain` says."""
    click.echo(json.dumps(plain(values), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """A value as JSON holds it: records become objects, paths texts, and numbers that are not finite null.

    >>> plain({"folder": Path("a"), "dice": float("nan"), 1: (2, 3)})
    {'folder': 'a', 'dice': None, '1': [2, 3]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
