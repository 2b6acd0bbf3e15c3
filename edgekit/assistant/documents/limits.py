"""Every limit of reading and indexing documents, and what is not read at all."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one folder, one file and one worker may use.

    Attributes:
        folder_files: files of one source; further ones are reported and left out.
        folder_depth: levels of folders below the chosen one.
        file_bytes: size of a file.
        text_characters: characters kept of one file; the rest is cut off and reported.
        pages: pages read of a PDF.
        seconds, processor_seconds: time for one file, on the clock and on the processor.
        memory_bytes: address space (Linux) and resident memory (everywhere) of the reader.
        archive_entries, archive_bytes, archive_ratio: files in a .docx, their unpacked size
            together, and unpacked over packed size of each.
        answer_bytes: what the reader may send back for one file.
    """

    folder_files: int = 50_000
    folder_depth: int = 24
    file_bytes: int = 64 * MB
    text_characters: int = 10_000_000
    pages: int = 5_000
    seconds: float = 90.0
    processor_seconds: int = 60
    memory_bytes: int = 1024 * MB
    archive_entries: int = 5_000
    archive_bytes: int = 256 * MB
    archive_ratio: int = 250
    answer_bytes: int = 256 * MB

    def to_json(self) -> str:
        """For the command line of a child process."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Limits:
        """What ``to_json`` wrote; "" gives the defaults."""
        return Limits(**json.loads(text)) if text else Limits()


# Folders that programs make; hidden ones (".git", ".venv") are skipped by their dot.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__", "node_modules", "bower_components", "site-packages", "venv", "build", "dist",
        "cmake-build-debug", "cmake-build-release", "htmlcov", "$recycle.bin",
        "system volume information",
    }
)  # fmt: skip

KINDS = {
    "text": (".txt", ".text", ".log", ".csv", ".tsv", ".rst", ".tex", ".srt", ".vtt", ".org"),
    "markdown": (".md", ".markdown", ".mdown", ".mkd"),
    "html": (".html", ".htm", ".xhtml"),
    "pdf": (".pdf",),
    "docx": (".docx",),
    "code": (
        ".py", ".pyi", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".java", ".kt", ".kts",
        ".scala", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".m", ".mm", ".cs", ".go",
        ".rs", ".rb", ".php", ".swift", ".dart", ".lua", ".pl", ".r", ".jl", ".sh", ".bash",
        ".zsh", ".ps1", ".bat", ".sql", ".css", ".scss", ".vue", ".toml", ".yaml", ".yml", ".ini",
        ".cfg", ".json", ".xml", ".cmake", ".gradle", ".proto",
    ),
}  # fmt: skip
KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in KINDS.items() for suffix in suffixes}
KIND_OF_NAME = {
    "readme": "text", "license": "text", "changelog": "text", "makefile": "code",
    "dockerfile": "code", "cmakelists.txt": "code",
}  # fmt: skip


def kind_of(name: str) -> str | None:
    """Which reader a file name asks for, or None where there is none."""
    lowered = name.lower()
    if lowered in KIND_OF_NAME:
        return KIND_OF_NAME[lowered]
    return KIND_OF_SUFFIX.get("." + lowered.rpartition(".")[2] if "." in lowered else "")
