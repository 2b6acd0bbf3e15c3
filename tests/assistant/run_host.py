"""Runs the assistant as a process of its own with a scripted model, for tests that kill it.

``python run_host.py DATA SCRIPT [PORT]`` prints the JSON lines of ``edgekit assistant --json``.
"""

import sys
from pathlib import Path

from harness import fake_pack, fake_serve

from edgekit.assistant.folders import Folders
from edgekit.assistant.host import Options, run
from edgekit.assistant.policy import Policy
from edgekit.cli.assistant import print_line

if __name__ == "__main__":
    data, script = Path(sys.argv[1]), Path(sys.argv[2])
    options = Options(
        folders=Folders(data, data / "packs"),
        pack=fake_pack(data / "packs" / "fake"),
        port=int(sys.argv[3]) if len(sys.argv) > 3 else 0,
        window="none",
        serve=fake_serve(script),
        policy=Policy(),
    )
    run(options, print_line)
