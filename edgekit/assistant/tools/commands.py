"""The command and the environment of a tool server: a list of words, never a line for a shell.

The program is an absolute path or a bare name found on ``PATH``; the words after it reach the
program as they are. Of this process's environment a server gets what programs need to run at all,
and besides that what the person wrote for it: no keys and no tokens by accident.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import BadInputError

_WINDOWS = """
    APPDATA COMSPEC HOMEDRIVE HOMEPATH LOCALAPPDATA NUMBER_OF_PROCESSORS PATH PATHEXT
    PROCESSOR_ARCHITECTURE PROGRAMDATA PROGRAMFILES SYSTEMDRIVE SYSTEMROOT TEMP TMP USERNAME
    USERPROFILE WINDIR
"""
_POSIX = "HOME LANG LC_ALL LC_CTYPE LOGNAME PATH TMPDIR TZ USER"
INHERITED = tuple((_WINDOWS if sys.platform == "win32" else _POSIX).split())
MOST_WORDS, LONGEST_WORD = 64, 4096
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# What cmd.exe, which runs batch files whether asked or not, would read as more than a word.
_BATCH_SPECIAL = re.compile(r'[&|<>^%!"()\r\n]')


def checked_command(command: Sequence[str]) -> list[str]:
    """The command if it can be one.

    Raises:
        BadInputError: it is empty, too long, not text, or its program is a relative path.
    """
    if isinstance(command, str) or not command or not all(isinstance(w, str) for w in command):
        raise BadInputError("command must be a list of words: the program, then its arguments")
    if len(command) > MOST_WORDS or any(len(word) > LONGEST_WORD for word in command):
        raise BadInputError(
            f"command is too long (at most {MOST_WORDS} words of {LONGEST_WORD} characters); "
            "shorten it"
        )
    if any("\0" in word for word in command) or not command[0].strip():
        raise BadInputError("command has an empty program or a zero byte; write it again")
    program = command[0]
    if not Path(program).is_absolute() and Path(program).name != program:
        raise BadInputError(
            f"command: {program!r} is a relative path; write the absolute path of the program, or "
            "its bare name if it is on PATH"
        )
    return list(command)


def checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables a person gave.

    Raises:
        BadInputError: a name or a value cannot be one.
    """
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise BadInputError(f"env: {name!r} is no name of a variable; use letters, digits, _")
        if not isinstance(value, str) or "\0" in value or len(value) > LONGEST_WORD:
            raise BadInputError(f"env: the value of {name} is no text that a variable can hold")
    return dict(env)


def resolved(command: Sequence[str]) -> list[str]:
    """The command with its program as an absolute path.

    Raises:
        BadInputError: the program is not there or cannot be run.
    """
    words = checked_command(command)
    program = words[0]
    if Path(program).is_absolute():
        found = program if shutil.which(program) else None
    else:
        found = _on_path(program)
    if found is None:
        raise BadInputError(
            f"{program} is not a program on this machine; install it, or write its absolute path"
        )
    if Path(found).suffix.lower() in (".bat", ".cmd"):
        special = next((w for w in words[1:] if _BATCH_SPECIAL.search(w)), None)
        if special is not None:
            raise BadInputError(
                f"{found} is a batch file, and cmd.exe would interpret {special!r}; start the "
                "program that it starts instead"
            )
    return [found, *words[1:]]


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that a server starts with."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, **given}


def _on_path(program: str) -> str | None:
    """``shutil.which`` without the current directory, which Windows would look in first."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if Path(folder).is_absolute():
            found = shutil.which(str(Path(folder) / program))
            if found:
                return found
    return None
