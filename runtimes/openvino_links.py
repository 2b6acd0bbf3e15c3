"""A variant's OpenVINO model under the file names that GenAI asks for, in place.

The continuous-batching pipeline takes a directory with ``openvino_model.xml`` and
``openvino_model.bin``. Both are links into the variant, so the weights file is mapped where it is
and never copied.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.runtimes.openvino_engine import GRAPH, WEIGHTS


def link_model(variant: Path, directory: Path) -> None:
    """Make the two links in ``directory``.

    Raises:
        OSError: the system allows neither symbolic links here (Windows asks for a right) nor hard
            links (the variant is on another disk).
    """
    for source, name in ((GRAPH, "openvino_model.xml"), (Path(WEIGHTS), "openvino_model.bin")):
        target, link = (variant / source).resolve(), directory / name
        try:
            link.symlink_to(target)
        except OSError:
            os.link(target, link)
