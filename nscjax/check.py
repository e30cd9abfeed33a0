"""The one home of error wording: what was given, what is allowed, what to do.

Static facts (shapes, dtypes, ranges, names) are checked with these functions when a function is built or traced.
Whatever comes from outside and cannot be used ends in an `InputError`, which `train/main.py` turns into one line on
stderr and exit code 2.
"""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Something given from outside cannot be used. The message names it, what is allowed and what to do."""


def error(name: str, given: Any, allowed: str, remedy: str = "") -> InputError:
    """Returns (does not raise) the error for `name`, in the one form that all errors have.

    Args:
        name: what was given: an argument, a config key, a file.
        given: its value, shown by `repr`.
        allowed: what would have been accepted.
        remedy: what to do, as a sentence; empty where `allowed` says it all.
    """
    text = f"{name} is {given!r}; allowed: {allowed}."
    return InputError(f"{text} {remedy}" if remedy else text)


def nearest(given: str, choices: Iterable[str]) -> str:
    """Returns a question naming the choice most like `given`, or an empty string where none is near."""
    matches = difflib.get_close_matches(str(given), list(choices), n=1)
    return f"Did you mean {matches[0]!r}?" if matches else ""


def one_of(name: str, given: Any, choices: Iterable[Any]) -> Any:
    """Returns `given` if it is one of `choices`; else raises an `InputError` that lists them and the nearest."""
    choices = list(choices)
    if given not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise error(name, given, listed, nearest(given, [c for c in choices if isinstance(c, str)]))
    return given


def at_least(name: str, given: Any, least: Any) -> Any:
    """Returns `given`, of any real type, as Python's if it is finite and >= `least`; else raises an `InputError`."""
    if not _is_real(given) or not least <= given < math.inf:
        raise error(name, given, f"a finite number >= {least}")
    return _python(given)


def count(name: str, given: Any, least: int) -> int:
    """Returns `given`, of any integer type, as an int if it is >= `least`; else raises an `InputError`."""
    if isinstance(given, bool) or not isinstance(given, numbers.Integral) or given < least:
        raise error(name, given, f"a whole number >= {least}")
    return int(given)


def fraction(name: str, given: Any) -> Any:
    """Returns `given`, of any real type, as Python's if 0 < given <= 1; else raises an `InputError`."""
    if not _is_real(given) or not 0 < given <= 1:
        raise error(name, given, "a number in (0, 1]")
    return _python(given)


def _is_real(given: Any) -> bool:
    return isinstance(given, numbers.Real) and not isinstance(given, bool)


def _python(given: Any) -> int | float:
    """Returns a real number as Python's: NumPy's have a dtype, and would promote what they meet."""
    return int(given) if isinstance(given, numbers.Integral) else float(given)
