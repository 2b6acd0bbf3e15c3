"""The errors that a person sees, and the exit code of each.

An error is one sentence that names the file, field or device and says what to do next. Anything
else that escapes is a defect of edgekit and exits with 1.

====  =========================================================
code  meaning
====  =========================================================
0     done
1     a defect of edgekit
2     bad input or usage
3     a gate failed
4     a device, a runtime or an installed extra is missing
5     not enough memory or disk
130   interrupted
====  =========================================================
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of every expected failure; ``exit_code`` is what the command line returns."""

    exit_code = 1


class BadInputError(EdgekitError):
    """A file, field or argument from the user cannot be used."""

    exit_code = 2


class GateFailedError(EdgekitError):
    """A measured condition of the recipe does not hold."""

    exit_code = 3


class MissingRuntimeError(EdgekitError):
    """A device, a runtime or an optional dependency is not there."""

    exit_code = 4


class OutOfResourcesError(EdgekitError):
    """There is not enough memory or disk for the work."""

    exit_code = 5


def missing_extra(module: str, extra: str) -> MissingRuntimeError:
    """The error for an optional dependency that is not installed."""
    return MissingRuntimeError(
        f'{module} is not installed: run `pip install "edgekit[{extra}]"` and try again'
    )
