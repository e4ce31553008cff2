"""Finds the patient in a file's name."""

import re
from pathlib import Path


def compile_pattern(pattern: str | None) -> re.Pattern | None:
    r"""Compile a regular expression with exactly one group, the patient.

    Args:
        pattern: Searched in stems, e.g. `r"^(.*)_\d+$"` for `<case>_<slice>`; None where patients are unknown.

    Raises:
        ValueError: If it is no regular expression, or has no group or several.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"patient={pattern!r} is not a regular expression ({error}); correct it") from error
    if compiled.groups != 1:
        raise ValueError(
            f"patient={pattern!r} has {compiled.groups} groups; write exactly one, around the patient, "
            r"e.g. '^(.*)_\d+$' (use (?:...) for the others)"
        )
    return compiled


def patient_of(file: Path, stem: str, pattern: re.Pattern | None) -> str:
    """The patient of a file: what the pattern's group finds in the stem, or the stem itself without a pattern.

    Args:
        file: Named in the error.
        stem: Name of the file without its extension.
        pattern: From `compile_pattern`.

    Raises:
        ValueError: If the pattern finds nothing, or an empty group.
    """
    if pattern is None:
        return stem
    match = pattern.search(stem)
    if match is None or not match.group(1):
        raise ValueError(
            f"{file}: the patient pattern {pattern.pattern!r} finds no patient in the stem {stem!r}; "
            "correct the pattern or rename the file"
        )
    return match.group(1)
