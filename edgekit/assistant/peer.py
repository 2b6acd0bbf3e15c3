"""Whether a connection on loopback comes from a program of the same user.

The address of a new window holds its one-time token in an argument of the browser, which other
users of a Linux machine can read and might be quicker to use. The system's table of connections
says whose each is.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

TABLE = Path("/proc/net/tcp")


def is_same_user(
    client: tuple[str, int] | None, server: tuple[str, int | None] | None, table: Path = TABLE
) -> bool:
    """False only where the system says that another user holds the client's end."""
    if client is None or server is None or not sys.platform.startswith("linux"):
        return True
    try:
        rows = table.read_text().splitlines()[1:]
        mine, theirs = _hex(client[0], client[1]), _hex(server[0], server[1] or 0)
    except (OSError, ValueError):
        return True
    for row in rows:
        fields = row.split()
        if len(fields) > 7 and fields[1] == mine and fields[2] == theirs:
            return fields[7] == str(os.getuid())
    return True


def _hex(host: str, port: int) -> str:
    """An IPv4 address as the table writes it: in the order of the machine's bytes."""
    address = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{address:08X}:{port:04X}"
