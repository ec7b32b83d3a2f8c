"""A run is checked when it is made: what cannot be trained is refused when it is planned, not after the runs before it.

A run is a frozen dataclass. Its fields become Python's own numbers, texts and truth values, so that equal runs are one
run whatever library made their values, and every run can be written as JSON.
"""

import dataclasses
import os
from numbers import Real

import numpy as np

LARGEST = 2**63 - 1  # that torch takes as a seed


def python_scalar(value):
    """A scalar of NumPy or PyTorch as Python's; of one in single or half precision the decimal that it stands for."""
    if not hasattr(value, "item") or getattr(value, "ndim", 0):
        return value
    number = value.item()
    short = isinstance(number, float) and any(name in str(value.dtype) for name in ("float32", "float16"))
    return float(str(np.float32(number))) if short else number


def settle(run, limits: dict[str, tuple], choices: dict[str, object], leave: tuple[str, ...] = ()) -> None:
    """Set the fields of a run, but those to leave, to plain values. limits: smallest and largest value of a number, by
    field; without them a number is not negative. choices: what a field may be. Raises ValueError, in one line."""
    for field in dataclasses.fields(run):
        if field.name not in leave:
            value = _settled(field, getattr(run, field.name), limits.get(field.name))
            object.__setattr__(run, field.name, value)
            if field.name in choices:
                choose(field.name, value, choices[field.name])


def choose(name: str, value, options) -> None:
    """Raises ValueError, with what there is, for a value that is not one of the options."""
    if value not in options:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(options)}")


def _settled(field, value, limits):
    value = python_scalar(value)
    if value is None and field.default is None:
        return value
    if field.type in (str, bool):
        value = os.fspath(value) if field.type is str and isinstance(value, os.PathLike) else value
        if not isinstance(value, field.type):
            raise ValueError(f"{field.name} must be of type {field.type.__name__}, got {_shown(value)}")
        return value
    whole = field.type is not float
    low, high = limits or (0, LARGEST if whole else 10**9)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{field.name} must be {kind} from {low:,} to {high:,}, got {_shown(value)}")
    return int(value) if whole else float(value)  # 1 and 1.0 are the same run: the same key


def _shown(value) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"
