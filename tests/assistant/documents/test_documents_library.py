"""The library as the assistant uses it: processes that come and go, and an index that stays."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from documents_driver import DIM

from edgekit.assistant.documents import store, supervisor
from edgekit.assistant.documents.child import Child, ChildFailedError
from edgekit.assistant.documents.library import Library, Processes
from edgekit.assistant.documents.limits import MB, Limits
from edgekit.errors import BadInputError, OutOfResourcesError

DRIVER = str(Path(__file__).with_name("documents_driver.py"))
PROCESSES = Processes(
    indexer=[sys.executable, DRIVER, "indexer"], embedder=[sys.executable, DRIVER, "embedder"]
)
DEADLINE = 60.0


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "documents"
    made.mkdir()
    (made / "cars.txt").write_text("The automobile was repaired in May. " * 3)
    (made / "soup.md").write_text("# Soup\n\nBoil the leeks in water for twenty minutes.\n")
    return made


@pytest.fixture
def open_library(tmp_path):
    """Opens libraries at one path and closes them."""
    opened: list[Library] = []

    def make(pack: str = "", **options: object) -> Library:
        for library in opened:
            library.close()
        opened[:] = [
            Library(
                tmp_path / "data" / "documents.db",
                tmp_path / pack if pack else None,
                **{"processes": PROCESSES, **options},  # type: ignore[arg-type]
            )
        ]
        return opened[0]

    yield make
    for library in opened:
        library.close()


def names(passages) -> list[str]:
    return [Path(p.file).name for p in passages]


def test_a_folder_is_indexed_searched_and_cited_with_full_text_alone(open_library, folder):
    library = open_library(processes=None)  # the real commands
    source = library.add(folder)
    assert (source.state, source.kind, source.path) == ("queued", "folder", str(folder))
    assert library.wait(DEADLINE)
    (source,) = library.sources()
    assert (source.state, source.files, source.passages, source.problems) == ("ready", 2, 2, [])
    (passage,) = library.search("How long do I boil leeks?")
    assert (Path(passage.file).name, passage.heading) == ("soup.md", "Soup")
    assert passage.why == "words" and passage.source_id == source.id
    assert passage.text[passage.text.index("Boil") :].startswith("Boil the leeks")
    assert library.search("What does a train ticket cost?") == []
    assert library.search("?!") == []
    assert library.embedding_state() == "none: full text alone"
    assert library.progress().phase == "idle"


def test_meaning_finds_what_shares_no_word_with_the_question(open_library, folder):
    library = open_library("fake-1")
    library.add(folder)
    assert library.wait(DEADLINE)
    (passage,) = library.search("vehicle")
    assert (Path(passage.file).name, passage.why) == ("cars.txt", "meaning")
    (passage,) = library.search("automobile repaired")
    assert passage.why == "both" and passage.similarity > 0.5
    assert library.embedding_state() == f"fake-1, {DIM} dimensions"
    assert names(library.search("轿车")) == ["cars.txt"]  # the fake model knows Chinese as well


def test_another_embedding_model_replaces_the_vectors_while_full_text_works(open_library, folder):
    library = open_library("fake-1")
    library.add(folder)
    assert library.wait(DEADLINE)
    library = open_library("fake-2")
    assert names(library.search("boil leeks")) == ["soup.md"]
    assert library.wait(DEADLINE)
    assert library.embedding_state() == f"fake-2, {DIM} dimensions"
    assert names(library.search("vehicle")) == ["cars.txt"]
    library.close()
    with closing(sqlite3.connect(folder.parent / "data" / "documents.db")) as db:
        assert db.execute("SELECT name FROM embedders").fetchall() == [("fake-2",)]
        assert db.execute("SELECT count(*) FROM vectors").fetchone() == (2,)


def test_a_broken_embedding_pack_leaves_full_text_and_says_so(open_library, folder):
    library = open_library("broken")
    library.add(folder)
    assert library.wait(DEADLINE)
    assert names(library.search("boil leeks")) == ["soup.md"]
    assert library.embedding().state == "failed"
    assert "damaged; make it again" in library.embedding_state()


def test_a_crash_of_the_embedding_process_costs_one_search_its_meaning(open_library, folder):
    library = open_library("fake-1")
    library.add(folder)
    assert library.wait(DEADLINE)
    assert names(library.search("vehicle")) == ["cars.txt"]
    library._questions._child._process.kill()
    library._questions._child._process.wait()
    assert names(library.search("vehicle")) == ["cars.txt"]  # started again


def test_a_removed_source_is_out_of_every_search_at_once(open_library, folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Leeks are also sold by the pound.")
    library = open_library()
    source = library.add(folder)
    library.add(other)
    assert library.wait(DEADLINE)
    assert sorted(names(library.search("leeks"))) == ["other.txt", "soup.md"]
    library.remove(source.id)
    assert names(library.search("leeks")) == ["other.txt"]
    assert library.wait(DEADLINE)
    with closing(sqlite3.connect(tmp_path / "data" / "documents.db")) as db:
        assert db.execute("SELECT count(*) FROM passages").fetchone() == (1,)
    with pytest.raises(BadInputError, match="is not one of your documents"):
        library.refresh(source.id)


def test_opening_looks_at_the_sources_again(open_library, folder):
    library = open_library()
    library.add(folder)
    assert library.wait(DEADLINE)
    library.close()
    (folder / "soup.md").unlink()
    (folder / "tea.txt").write_text("Tea needs three minutes.")
    library = open_library()
    assert library.wait(DEADLINE)
    assert names(library.search("tea minutes")) == ["tea.txt"]
    assert library.search("leeks") == []


def test_a_citation_shows_the_text_around_it_until_the_document_changes(open_library, tmp_path):
    path = tmp_path / "long.txt"
    sentences = [f"Sentence {n} speaks about item{n} and nothing else." for n in range(200)]
    path.write_text(" ".join(sentences))
    library = open_library()
    source = library.add(path)
    assert library.wait(DEADLINE)
    (passage,) = library.search("item100")
    shown = library.passage(passage.id)
    assert shown.passage.text == passage.text and "item100" in passage.text
    whole = path.read_text()
    around = shown.before + passage.text + (shown.after or "")
    assert " ".join(around.split()) in whole
    assert shown.before and shown.after
    path.write_text("Everything is different.")
    library.refresh(source.id)
    assert library.wait(DEADLINE)
    with pytest.raises(BadInputError, match="no longer in your documents"):
        library.passage(passage.id)
    for nonsense in ("", "x", "1-x", "-1", "99999999999999999999"):
        with pytest.raises(BadInputError):
            library.passage(nonsense)


def test_what_does_not_exist_cannot_be_added(open_library, tmp_path):
    with pytest.raises(BadInputError, match="choose a file or folder that exists"):
        open_library().add(tmp_path / "nowhere")


def test_an_indexer_that_is_killed_is_started_again(open_library, folder):
    for n in range(300):
        (folder / f"{n}.txt").write_text(f"Document number {n} about topic{n}.")
    library = open_library()
    library.add(folder)
    deadline = time.monotonic() + DEADLINE
    while library.progress().done < 20 and time.monotonic() < deadline:
        os.sched_yield()
    library._supervisor._process.kill()
    assert library.wait(DEADLINE)
    (source,) = library.sources()
    assert (source.state, source.files) == ("ready", 302)
    assert names(library.search("topic299")) == ["299.txt"]


def test_an_indexer_that_always_dies_gives_up_with_a_reason(open_library, folder):
    dying = Processes(indexer=[sys.executable, "-c", "import os; os._exit(9)"], embedder=[])
    library = open_library(processes=dying)
    library.add(folder)
    assert library.wait(DEADLINE)
    (source,) = library.sources()
    assert source.state == "failed"
    assert source.problems == [
        f"the indexing process ended {supervisor.TRIES} times (exit code 9); refresh to try again"
    ]


def test_a_full_disk_is_reported_and_not_tried_for_ever(open_library, folder):
    full = Processes(indexer=[sys.executable, "-c", "import os; os._exit(71)"], embedder=[])
    library = open_library(processes=full)
    library.add(folder)
    assert library.wait(DEADLINE)
    (source,) = library.sources()
    assert source.problems == ["the disk is full; free some space and refresh"]


def test_a_damaged_index_is_made_again_from_the_chosen_sources(open_library, folder, tmp_path):
    library = open_library()
    library.add(folder)
    assert library.wait(DEADLINE)
    library.close()
    path = tmp_path / "data" / "documents.db"
    path.write_bytes(b"\0" * 5000)
    library = open_library()
    assert library.wait(DEADLINE)
    assert names(library.search("boil leeks")) == ["soup.md"]
    library.close()
    data = bytearray(path.read_bytes())  # damage inside: found by the check of the indexer
    data[4096 : 4096 * 6] = os.urandom(4096 * 5)
    path.write_bytes(data)
    library = open_library()
    assert library.wait(DEADLINE)
    assert names(library.search("boil leeks")) == ["soup.md"]
    assert [s.path for s in library.sources()] == [str(folder)]


def test_a_locked_or_unwritable_index_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "documents.db").mkdir()
    with pytest.raises(OutOfResourcesError, match="cannot be opened"):
        Library(tmp_path / "documents.db", None)


def test_many_threads_may_search_while_files_are_added(open_library, folder):
    library = open_library("fake-1")
    library.add(folder)
    assert library.wait(DEADLINE)
    results: list[list[str]] = []

    def search() -> None:
        results.extend(names(library.search("boil leeks")) for _ in range(10))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(5):
        (folder / f"{n}.txt").write_text(f"Another document, {n}.")
        library.add(folder)
    for thread in threads:
        thread.join()
    assert results == [["soup.md"]] * 40
    assert library.wait(DEADLINE)
    assert library.sources()[0].files == 7


def test_a_source_chosen_twice_is_one_source(open_library, folder):
    library = open_library()
    first = library.add(folder)
    assert library.add(folder / ".." / folder.name).id == first.id
    assert len(library.sources()) == 1


def test_limits_reach_the_processes(open_library, folder):
    library = open_library(processes=None, limits=Limits(file_bytes=40, text_characters=10))
    library.add(folder)
    assert library.wait(DEADLINE)
    (source,) = library.sources()
    assert source.files == 0
    assert any("larger than" in p for p in source.problems)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("x = bytearray(b'x') * (300 << 20); time.sleep(600)", "used more than 100 MB of memory"),
        ("time.sleep(600)", "took longer than 0.5 s"),
        ("os.abort()", "crashed (signal 6)"),
        ("sys.exit(3)", "crashed (exit code 3)"),
        ("sys.stdout.buffer.write(b'\\xff' * 8); sys.stdout.flush(); time.sleep(600)", "too long"),
        ("sys.stdout.buffer.write(b'\\x09' + bytes(7) + b'abc')", "in the middle of an answer"),
    ],
)
def test_a_child_that_misbehaves_is_killed_with_the_reason(program, reason):
    child = Child([sys.executable, "-c", f"import os, sys, time; {program}"], MB)
    seconds = 0.5 if "longer" in reason else DEADLINE
    with closing(child), pytest.raises(ChildFailedError) as caught:
        child.ask(b"question", seconds, 100 * MB)
    assert reason in str(caught.value)
    assert child._process is None


def test_the_source_list_is_kept_beside_the_index(open_library, folder, tmp_path):
    library = open_library()
    source = library.add(folder)
    path = tmp_path / "data" / "documents.db"
    assert source.id in Path(f"{path}.sources.json").read_text()
    library.remove(source.id)
    assert source.id not in Path(f"{path}.sources.json").read_text()
    library.close()
    with closing(store.begin_anew(path)) as db:
        assert db.execute("SELECT count(*) FROM sources").fetchone() == (0,)
