"""A variant's OpenVINO model under the file names that GenAI asks for, in place.

The continuous-batching pipeline takes a directory with ``openvino_model.xml`` and
``openvino_model.bin``. Both are links into the variant, so the weights file is mapped where it is
and never copied.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.variant_files import files_of


def link_model(variant: Path, directory: Path) -> None:
    """Make the two links in ``directory``.

    Raises:
        OSError: the system allows neither symbolic links here (Windows asks for a right) nor hard
            links (the variant is on another disk).
    """
    files = files_of(variant)
    for source, name in (
        (files.openvino_graph, "openvino_model.xml"), (files.weights, "openvino_model.bin")
    ):  # fmt: skip
        target, link = source.resolve(), directory / name
        try:
            link.symlink_to(target)
        except OSError:
            os.link(target, link)
