"""Validation of configurations with pydantic, and its errors in the words of a configuration file."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["STRICT", "Count", "NonNegative", "Positive", "Real", "friendly", "reason_of"]

#: Configuration of every section's dataclass: no unknown keys, no silent conversion ("3" or True is no number), no NaN.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _read_number(value: Any) -> Any:
    """Read a number given as text, as YAML gives 1e-4; what is no number is left for pydantic to refuse."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Real = Annotated[float, BeforeValidator(_read_number)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def friendly(error: ValidationError, known: Mapping[str, Any]) -> ValueError | TypeError:
    """Return the error that names each wrong key, what it got and what it needs; a TypeError for a value of a wrong kind.

    Args:
        known: the whole configuration as nested mappings, for the nearest known key to an unknown one.
    """
    details = error.errors(include_url=False)
    kind = TypeError if details[0]["type"].endswith("_type") else ValueError
    return kind("; ".join(_describe(each, known) for each in details))


def _describe(detail: ErrorDetails, known: Mapping[str, Any]) -> str:
    label = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "value_error":  # raised by a check of our own, whose message says it all
            return str(detail["ctx"]["error"])
        case "unexpected_keyword_argument":
            *sections, key = (str(part) for part in detail["loc"])
            for section in sections:
                known = known[section]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            return f"unknown configuration key {label!r}; {hint}known here: {', '.join(known)}"
        case "tuple_type":
            return f"{label} must be a list, got {detail['input']!r}"
        case "dataclass_type":
            return f"{label or 'the configuration'} must be a mapping of keys to values, got {detail['input']!r}"
    need = detail["msg"].replace("Input should", "it must").replace("greater than or equal to", "at least")
    return f"{label} is {detail['input']!r}; {need.replace('less than or equal to', 'at most')}"


def reason_of(error: BaseException) -> str:
    """Return what a library says about a file it cannot read, in one line.

    >>> reason_of(KeyError()), reason_of(ValueError("no zip file\\nmore"))
    ('KeyError', 'no zip file')
    """
    if isinstance(
        error, pickle.UnpicklingError
    ):  # PyTorch's text is about how to run the code in the file all the same
        return "it holds more than tensors and plain values, or its table of contents is broken"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
