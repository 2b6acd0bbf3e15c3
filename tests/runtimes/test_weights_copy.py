"""The copy of the weights that compile makes, by the kernel or through memory."""

import errno
import os

import numpy as np
import pytest

from edgekit.progress import Silent
from edgekit.runtimes import compile as compile_module

CONTENT = np.random.default_rng(0).bytes(100_001)


def refuse(code):
    def copy_file_range(*_):
        raise OSError(code, os.strerror(code))

    return copy_file_range


@pytest.mark.parametrize("way", ["kernel", "two file systems", "says nothing was copied", "absent"])
def test_every_byte_arrives_whichever_way_the_system_offers(tmp_path, monkeypatch, way):
    monkeypatch.setattr(compile_module, "COPY_CHUNK", 4096)
    if way == "two file systems":
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV), raising=False)
    elif way == "says nothing was copied":  # some network file systems do
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0, raising=False)
    elif way == "absent":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    (tmp_path / "source").write_bytes(CONTENT)
    compile_module._copy_weights(tmp_path / "source", tmp_path / "target", Silent())
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_a_full_disk_is_not_tried_a_second_way(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.ENOSPC), raising=False)
    (tmp_path / "source").write_bytes(CONTENT)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        compile_module._copy_weights(tmp_path / "source", tmp_path / "target", Silent())
