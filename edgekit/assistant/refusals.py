"""How the assistant's API says no: a status, a code that the interface translates, a sentence."""

from __future__ import annotations

import sqlite3
import traceback

from edgekit.assistant.history_records import NotFoundError
from edgekit.assistant.history_store import DamagedError
from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError, OutOfResourcesError


class RefusalError(EdgekitError):
    """A request that cannot be done.

    Attributes:
        status: the HTTP status.
        code: a word for the interface, such as "not_found".
    """

    exit_code = 2

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def not_found(what: str) -> RefusalError:
    """The refusal for an id that names nothing."""
    return RefusalError(404, "not_found", f"this {what} is not here any more; reload the page")


def refusal_of(error: Exception) -> RefusalError:
    """An expected failure as the API tells it; anything else is a defect and a plain sentence."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, OutOfResourcesError):
        return RefusalError(507, "disk_full", str(error))
    if isinstance(error, MissingRuntimeError):
        return RefusalError(503, "missing_runtime", str(error))
    if isinstance(error, NotFoundError):
        return not_found(error.kind)
    if isinstance(error, BadInputError):
        return RefusalError(400, "bad_input", str(error))
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return RefusalError(
            507, "disk_full", "the disk is full, so nothing was saved; free some space"
        )
    if isinstance(error, DamagedError):
        return RefusalError(500, "history_failed", str(error))
    if isinstance(error, sqlite3.Error):
        return RefusalError(
            500, "history_failed", f"the history cannot be used ({error}); start again"
        )
    if isinstance(error, EdgekitError):
        return RefusalError(500, "failed", str(error))
    traceback.print_exception(error)  # the page gets a sentence, standard error what to mend
    kind = type(error).__name__
    return RefusalError(
        500, "defect", f"a defect of edgekit ({kind}); try again, then please report it"
    )
