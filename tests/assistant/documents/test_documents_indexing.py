"""The index follows the files, and no file can take more than itself out of it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from document_files import docx, paragraph, pdf
from documents_driver import FakeEmbedder

from edgekit.assistant.documents import indexer, store
from edgekit.assistant.documents.child import module_command
from edgekit.assistant.documents.embedding import windows
from edgekit.assistant.documents.indexer import Indexer
from edgekit.assistant.documents.limits import MB, Limits
from edgekit.assistant.documents.ranking import rank
from edgekit.assistant.documents.words import terms_of

DRIVER = Path(__file__).with_name("documents_driver.py")
LIMITS = Limits(seconds=30, memory_bytes=400 * MB)


class Index:
    """A folder and its index, run in this process with a real reader."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "documents"
        self.folder.mkdir()
        self.db = store.connect(root / "index.db")
        self.db.execute(
            "INSERT INTO sources(id, path, kind) VALUES('s', ?, 'folder')", (str(self.folder),)
        )
        self.read: list[str] = []

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def run(self, limits: Limits = LIMITS, naughty: bool = False) -> list[str]:
        """Look at the folder again; the names of the files that were opened by the reader."""
        self.db.execute("UPDATE sources SET state = 'queued'")
        command = [sys.executable, str(DRIVER), "reader", limits.to_json()] if naughty else None
        worker = Indexer(self.db, limits, lambda event: None, command)
        opened: list[str] = []
        ask = worker._reader.ask

        def asked(request: bytes, *rest: object) -> bytes:
            opened.append(Path(json.loads(request)["path"]).name)
            return ask(request, *rest)

        worker._reader.ask = asked  # type: ignore[method-assign]
        worker.run()
        return opened

    def found(self, question: str) -> list[str]:
        return [Path(p.file).name for p in rank(self.db, terms_of(question), None, 10)]

    def problems(self) -> dict[str, str]:
        rows = self.db.execute("SELECT path, problem FROM files WHERE problem <> ''")
        return {Path(path).name: problem for path, problem in rows}

    def count(self, table: str) -> int:
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture
def index(tmp_path):
    made = Index(tmp_path)
    with closing(made.db):
        yield made


def test_only_what_changed_is_read_again(index):
    index.write("a.txt", "Alpha is the first letter.")
    index.write("b.md", "# Beta\nThe second letter.")
    assert index.run() == ["a.txt", "b.md"]
    assert index.run() == []
    os.utime(index.folder / "a.txt")  # touched, not changed
    assert index.run() == []
    index.write("b.md", "# Gamma\nThe third letter.")
    assert index.run() == ["b.md"]
    assert index.found("gamma") == ["b.md"]
    assert index.found("beta") == []


def test_a_deleted_file_vanishes_from_every_table(index):
    secret = index.write("secret.txt", "The xylophone password is swordfish.")
    index.write("other.txt", "Something else.")
    index.run()
    assert index.found("xylophone") == ["secret.txt"]
    secret.unlink()
    index.run()
    assert index.found("xylophone") == []
    assert (index.count("passages"), index.count("contents"), index.count("files")) == (1, 1, 1)
    terms = [t for (t,) in index.db.execute("SELECT term FROM vocabulary")]
    assert "xylophon" not in terms and "someth" in terms
    for file in index.folder.parent.glob("index.db*"):
        assert b"xylophon" not in file.read_bytes() and b"swordfish" not in file.read_bytes()


def test_a_renamed_file_is_not_read_again_and_keeps_its_passages(index):
    path = index.write("old.txt", "A rename changes nothing in here.")
    index.run()
    before = index.db.execute("SELECT id FROM passages").fetchall()
    path.rename(index.folder / "new.txt")
    assert index.run() == []
    assert index.db.execute("SELECT id FROM passages").fetchall() == before
    assert index.found("rename") == ["new.txt"]


def test_a_copy_shares_passages_and_survives_the_original(index):
    path = index.write("one.txt", "Copies are equal.")
    index.write("two.txt", "Copies are equal.")
    assert index.run() == ["one.txt"]
    assert index.count("passages") == 1
    path.unlink()
    index.run()
    assert index.found("copies") == ["two.txt"]


def test_a_file_that_changes_between_digest_and_reading_is_read_again(index, monkeypatch):
    path = index.write("moving.txt", "The first state.")
    digest = indexer._digest

    def changing(file: Path) -> str:
        value = digest(file)
        index.write("moving.txt", "The second state, which is longer.")
        return value

    monkeypatch.setattr(indexer, "_digest", changing)
    index.run()
    monkeypatch.undo()
    assert index.found("second") == ["moving.txt"]  # what was read is what is stored
    path.write_text("The first state.")
    index.run()
    assert index.found("second") == []
    assert index.found("first") == ["moving.txt"]


def test_links_hidden_files_and_program_folders_are_passed_over(index, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("Outside secret.")
    (index.folder / "escape").symlink_to(outside)
    (index.folder / "escape.txt").symlink_to(outside / "secret.txt")
    (index.folder / "loop").symlink_to(index.folder)
    index.write(".hidden/a.txt", "Hidden secret.")
    index.write("node_modules/b.txt", "Program secret.")
    index.write("photo.jpg", b"\xff\xd8\xff")
    index.write("~$lock.docx", b"x")
    index.write("sub/ok.txt", "No secret here.")
    assert index.run() == ["ok.txt"]
    assert index.found("secret") == ["ok.txt"]
    (problems,) = index.db.execute("SELECT problems FROM sources").fetchone()
    assert json.loads(problems) == [
        f"{index.folder}/escape: a link that leaves the folder, not followed",
        f"{index.folder}/escape.txt: a link that leaves the folder, not followed",
        "1 folders that programs make were passed over: node_modules (1)",
        "1 files of other kinds were left out: .jpg (1)",
    ]


def test_limits_on_a_folder_are_kept_and_reported(index):
    for n in range(5):
        index.write(f"{n}.txt", f"File number {n}.")
    index.write("deep/er/est.txt", "Deep down.")
    index.write("big.txt", "x" * (2 * MB))
    opened = index.run(Limits(folder_files=3, folder_depth=1, file_bytes=MB))
    (problems,) = index.db.execute("SELECT problems FROM sources").fetchone()
    assert opened == ["0.txt", "1.txt", "2.txt"]
    assert "only the first 3 files" in problems and "larger than 1 MB" in problems
    index.run(Limits(folder_depth=1, file_bytes=MB))
    (problems,) = index.db.execute("SELECT problems FROM sources").fetchone()
    assert "deep/er: deeper than 1 folders" in problems


def test_bad_files_are_reported_and_skipped_until_they_change(index):
    index.write("broken.pdf", b"%PDF-1.7 nonsense")
    index.write("bomb.docx", docx("", "<!DOCTYPE x>"))
    index.write("binary.txt", b"\0\1\2")
    index.write("good.pdf", pdf(["Good page."]))
    assert index.run() == ["binary.txt", "bomb.docx", "broken.pdf", "good.pdf"]
    assert index.problems() == {
        "broken.pdf": "it is not a whole PDF",
        "bomb.docx": "word/document.xml in it declares a document type, which Word never does",
        "binary.txt": "it is not text (it holds zero bytes)",
    }
    assert index.run() == []
    index.write("broken.pdf", pdf(["Mended now."]))
    assert index.run() == ["broken.pdf"]
    assert index.found("mended") == ["broken.pdf"]


@pytest.mark.parametrize(
    ("order", "limits", "problem"),
    [
        ("HANG", Limits(seconds=1), "reading it took longer than 1 s"),
        ("SPIN", Limits(processor_seconds=1), "used more processor time than one file may"),
        ("EAT", Limits(memory_bytes=400 * MB), "reading it needs more than 400 MB of memory"),
        ("FAIL", LIMITS, "reading it failed (IndexError: list index out of range)"),
        ("DIE", LIMITS, "reading it crashed (signal 6)"),
        ("WRITE", LIMITS, "it cannot be opened (File too large)"),
    ],
)
def test_a_reader_that_misbehaves_loses_one_file_only(index, order, limits, problem):
    index.write("1.txt", "Before.")
    index.write("2.txt", order)
    index.write("3.txt", "After.")
    assert index.run(limits, naughty=True) == ["1.txt", "2.txt", "3.txt"]
    assert list(index.problems()) == ["2.txt"]
    assert problem in index.problems()["2.txt"]
    assert index.found("before") == ["1.txt"] and index.found("after") == ["3.txt"]
    assert index.run(limits, naughty=True) == []


def test_noise_on_standard_output_does_not_reach_the_answers(index):
    index.write("1.txt", "PRINT")
    assert index.run(naughty=True) == ["1.txt"]
    assert index.found("print") == ["1.txt"]


def test_a_missing_parser_is_tried_again_at_the_next_run(index, monkeypatch):
    index.write("a.pdf", pdf(["Text."]))
    reply = json.dumps({"reason": "pypdfium2 is not installed", "missing": True}).encode()
    monkeypatch.setattr("edgekit.assistant.documents.child.Child.ask", lambda *_: reply)
    index.run()
    assert index.problems() == {"a.pdf": "pypdfium2 is not installed"}
    monkeypatch.undo()
    assert index.run() == ["a.pdf"]
    assert index.problems() == {}


def test_a_folder_that_is_gone_is_emptied_and_one_on_a_missing_drive_is_kept(index, tmp_path):
    index.write("a.txt", "Kept on the drive.")
    index.run()
    away = tmp_path / "away"
    index.folder.rename(away)
    index.run()
    assert index.db.execute("SELECT state FROM sources").fetchone() == ("missing",)
    assert index.found("drive") == []
    away.rename(index.folder)
    index.run()
    drive = tmp_path / "drive" / "papers"
    drive.parent.mkdir()
    index.folder.rename(drive)
    index.db.execute("UPDATE sources SET path = ?", (str(drive),))
    index.run()
    drive.parent.rename(tmp_path / "unplugged")
    index.run()
    assert index.db.execute("SELECT state FROM sources").fetchone() == ("missing",)
    assert index.found("drive") == ["a.txt"]


def test_a_folder_that_cannot_be_listed_keeps_what_is_known_of_it(index, monkeypatch):
    index.write("sub/a.txt", "Inside of the subfolder.")
    index.write("b.txt", "Beside it.")
    index.run()
    scandir = os.scandir

    def refusing(path: Path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("edgekit.assistant.documents.walk.os.scandir", refusing)
    index.run()
    assert index.found("subfolder") == ["a.txt"]
    assert "cannot be listed" in index.db.execute("SELECT problems FROM sources").fetchone()[0]


def test_a_source_removed_while_it_is_indexed_leaves_nothing(index):
    for n in range(4):
        index.write(f"{n}.txt", f"File number {n} here.")

    def remove(event: dict) -> None:
        if event["done"] == 2:
            index.db.execute("DELETE FROM sources")

    Indexer(index.db, LIMITS, remove).run()
    assert (index.count("files"), index.count("passages"), index.count("contents")) == (0, 0, 0)


def test_an_index_of_another_version_is_made_anew_from_its_sources(index, tmp_path):
    index.write("a.txt", "Versions change.")
    index.run()
    index.db.execute("PRAGMA user_version = 1")
    with closing(store.connect(tmp_path / "index.db")) as db:
        assert db.execute("SELECT id, state FROM sources").fetchall() == [("s", "queued")]
        assert db.execute("SELECT count(*) FROM passages").fetchone() == (0,)


def test_the_index_is_readable_by_its_owner_only(tmp_path):
    store.connect(tmp_path / "index.db").close()
    assert (tmp_path / "index.db").stat().st_mode & 0o777 == 0o600


def consistent(path: Path) -> None:
    """The tables agree with each other, whatever happened to the process."""
    with closing(store.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.execute("INSERT INTO words(words) VALUES('integrity-check')")
        passages = dict(db.execute("SELECT id, text FROM passages"))
        assert {i for (i,) in db.execute("SELECT rowid FROM words")} == set(passages)
        for number, text in passages.items():
            unique = next(w for w in text.split() if w.startswith("unique"))
            hits = db.execute("SELECT rowid FROM words WHERE words MATCH ?", (unique,)).fetchall()
            assert hits == [(number,)]


def test_an_indexer_killed_at_any_moment_leaves_a_consistent_index(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n:02}.txt").write_text(
            f"uniqueword{n} stands in this file. " + "Filler. " * 200
        )
    path = tmp_path / "index.db"
    with closing(store.connect(path)) as db:
        db.execute("INSERT INTO sources(id, path, kind) VALUES('s', ?, 'folder')", (str(folder),))
    command = module_command("edgekit.assistant.documents.indexer", str(path))
    moments = random.Random(7)
    for n in range(6):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(moments.randrange(0, 12)):
            process.stdout.readline()
        process.kill()
        process.communicate()
        consistent(path)
        (folder / f"{n:02}.txt").write_text(f"uniquechanged{n} now. " + "Other. " * 100)
    finish(command)
    consistent(path)
    with closing(store.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM files WHERE content_id IS NOT NULL").fetchone() == (
            40,
        )
        assert db.execute("SELECT state FROM sources").fetchone() == ("ready",)
        assert (
            db.execute("SELECT text FROM passages WHERE text LIKE '%uniqueword0 %'").fetchall()
            == []
        )


def finish(command: list[str]) -> None:
    """Run to the end; the open input says that somebody waits for it."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.read()
        assert process.wait() == 0


def test_an_indexer_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "HANG.txt").write_text("HANG")
    path = tmp_path / "index.db"
    with closing(store.connect(path)) as db:
        db.execute("INSERT INTO sources(id, path, kind) VALUES('s', ?, 'folder')", (str(tmp_path),))
    command = module_command("edgekit.assistant.documents.indexer", str(path))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    process.stdin.close()
    assert process.wait(timeout=30) == 0


def test_long_passages_are_embedded_in_windows_that_the_model_reads_whole():
    embedder = FakeEmbedder(Path("fake"))
    text = " ".join(f"Sentence number {n} is here." for n in range(200))
    parts = windows(embedder, "A heading", text)
    assert all(embedder.count_tokens(p) <= embedder.max_tokens for p in parts)
    assert all(p.startswith("A heading\n") for p in parts)
    assert " ".join(p.removeprefix("A heading\n") for p in parts) == text


def test_a_full_disk_and_a_damaged_index_have_exit_codes_of_their_own(tmp_path):
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert indexer._exit_code(full) == indexer.FULL
    path = tmp_path / "index.db"
    path.write_bytes(b"no database at all" * 100)
    command = module_command("edgekit.assistant.documents.indexer", str(path))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert json.loads(process.stdout.read())["error"] == "file is not a database"
        assert process.wait() == indexer.DAMAGED


def test_docx_and_pdf_reach_the_index_with_heading_and_page(index):
    index.write("a.docx", docx(paragraph("Terms", style="1") + paragraph("Payment by invoice.")))
    index.write("b.pdf", pdf(["One.", "比较长度"], unicode_of={"长": "\u2ed3"}))
    index.run()
    (found,) = rank(index.db, terms_of("payment"), None, 5)
    assert (Path(found.file).name, found.heading, found.page) == ("a.docx", "Terms", None)
    (found,) = rank(index.db, terms_of("长度是多少"), None, 5)
    assert (Path(found.file).name, found.page, found.text) == ("b.pdf", 2, "比较长度")
