"""The log of what left: bounded, and readable whatever happened to it."""

from __future__ import annotations

from pathlib import Path

from edgekit.assistant.cloud_log import UNKNOWN, CloudLog, LogEntry
from edgekit.assistant.redaction import Redaction


def entry(number: int) -> LogEntry:
    time = f"2026-01-01T00:00:{number % 60:02}+00:00"
    return LogEntry(f"id{number}", time, "h", "m", 10, "ab" * 32, (Redaction("EMAIL", number),))


def test_entry_without_an_end_says_that_it_is_unknown(tmp_path: Path) -> None:
    log = CloudLog(tmp_path / "log")
    log.begin(entry(1))
    assert CloudLog(tmp_path / "log").entries() == [entry(1)]
    assert log.entries()[0].outcome == UNKNOWN


def test_old_entries_go_and_the_size_stays_bounded(tmp_path: Path) -> None:
    log = CloudLog(tmp_path / "log", largest=2000)
    for number in range(30):
        log.begin(entry(number))
        log.end(f"id{number}", "answered", 5)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2 and max(sizes) <= 2000
    found = log.entries()
    assert found[0].id == "id29" and found[0].outcome == "answered"
    assert [e.id for e in found] == [f"id{n}" for n in range(29, 29 - len(found), -1)]


def test_broken_lines_are_skipped_and_a_cut_one_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CloudLog(path)
    log.begin(entry(1))
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"id": "id9"}\n{"id": "id1", "outc')
    log.end("id1", "answered", 3)
    log.begin(entry(2))
    assert [(e.id, e.outcome) for e in log.entries()] == [("id2", UNKNOWN), ("id1", "answered")]
