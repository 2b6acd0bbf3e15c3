"""What this machine has, asked in a child process: loading every runtime's drivers takes a second
and may crash, which is no business of the process that holds the person's conversations.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from edgekit.assistant.refusals import RefusalError
from edgekit.runtimes.devices import Device

SECONDS = 60.0
COMMAND = (sys.executable, "-m", "edgekit", "devices", "--json")


class DeviceProbe:
    """Asks once and remembers."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = tuple(command)
        self._lock = asyncio.Lock()
        self.known: list[Device] | None = None

    async def devices(self, again: bool = False) -> list[Device]:
        """Every target with the state of its device.

        Raises:
            RefusalError: the child did not answer.
        """
        async with self._lock:
            if self.known is None or again:
                self.known = await self._ask()
            return self.known

    async def _ask(self) -> list[Device]:
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(SECONDS):
                output, _ = await process.communicate()
            return [Device.model_validate(d) for d in json.loads(output)["devices"]]
        except (TimeoutError, ValueError, KeyError, TypeError, ValidationError):
            raise RefusalError(
                503, "no_devices", "this machine's devices could not be listed; see edgekit doctor"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
