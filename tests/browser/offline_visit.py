"""A visit on a machine that has no network: started by the offline test in a namespace of its own.

``python offline_visit.py FOLDER`` starts the assistant and the browser, asks a question of a
document, and prints ``answered``. In a fresh network namespace there are no routes, and loopback
has to be switched on first.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "assistant")]

from harness import running  # noqa: E402
from visits import Visit, launch  # noqa: E402

GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 0x1
SOMEWHERE = ("192.0.2.1", 443)  # an address that nobody has


def switch_on_loopback() -> None:
    """``ip link set lo up`` without ip."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, GET_FLAGS, request))[1]
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14x", b"lo", flags | UP))


def has_routes() -> bool:
    """Whether anything outside could be reached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(SOMEWHERE)
        except OSError:
            return False
    return True


def main(folder: Path) -> None:
    switch_on_loopback()
    assert not has_routes()
    manual = folder / "manual.md"
    manual.write_text("# Kettle\n\nDescale the kettle with vinegar once a month.\n")
    with running(folder) as assistant, launch() as browser:
        assistant.wait_ready()
        assistant.script({"text": "With vinegar [1]."})
        here = Visit(browser, assistant, path="documents")
        here.page.get_by_role("button", name="Add a file").click()
        here.page.get_by_label("Full path on this computer").fill(str(manual))
        here.page.get_by_role("dialog").get_by_role("button", name="Add").click()
        here.page.locator(".card", has_text="manual.md").get_by_text("ready").wait_for()
        here.go("")
        answer = here.finished(here.ask("How do I descale a kettle?"))
        assert answer.locator(".citation").count() == 1
        here.close()
        assert here.problems == []
    print("answered")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
