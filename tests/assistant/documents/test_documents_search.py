"""What is found, in which order, and when nothing is."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from documents_driver import FakeEmbedder
from hypothesis import given
from hypothesis import strategies as st

from edgekit.assistant.documents import rarity, store
from edgekit.assistant.documents.embedding import STORED
from edgekit.assistant.documents.ranking import Meaning, rank
from edgekit.assistant.documents.rarity import rarity_of
from edgekit.assistant.documents.records import Cut
from edgekit.assistant.documents.traits import language_of, measure_traits
from edgekit.assistant.documents.vectors import VectorIndex
from edgekit.assistant.documents.words import Term, terms_of, words_of

FILLER = [f"Filler text number {n} about gardening and weather." for n in range(30)]


@pytest.fixture
def library(tmp_path):
    """Adds documents, each a list of (heading, text), one after the other in the file."""
    with closing(store.connect(tmp_path / "index.db")) as db:
        db.execute("INSERT INTO sources(id, path, kind) VALUES('s', '/s', 'folder')")

        def add(name: str, *passages: tuple[str, str], overlap: int = 0) -> list[int]:
            cuts, place = [], 0
            for heading, text in passages:
                cuts.append(Cut(text, heading, None, place, place + len(text)))
                place += len(text) - overlap
            content = store.add_content(db, name, "text", [], cuts)
            db.execute("INSERT INTO files VALUES('s', ?, 1, 1, 'text', ?, '', '')", (name, content))
            rows = db.execute(
                "SELECT id FROM passages WHERE content_id = ? ORDER BY id", (content,)
            )
            return [i for (i,) in rows]

        add.db = db
        for n, text in enumerate(FILLER):
            add(f"filler{n}", ("Notes", text))
        yield add


def search(library, question: str, meaning: Meaning | None = None, limit: int = 6):
    return rank(library.db, terms_of(question), meaning, limit)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("How are models quantized?", "Quantization of a model."),
        ("What was measured?", "The measurements are below."),
        ("Which memories are needed", "Memory: 4 GB"),
        ("running", "It runs."),
        ("Is it CAFÉ?", "The cafe is closed."),
        ("合同的有效期是多长？", "本合同有效期为三年。"),
        ("熵是什么？", "这里说的是熵值。"),
        ("ＮＰＵ 支持吗", "NPU 支持如下"),
        ("trust_remote_code", "trust_remote_code stays off"),
    ],
)
def test_a_question_finds_other_forms_of_its_words(library, question, text):
    library("answer", ("Part", text))
    assert [p.file for p in search(library, question)] == ["answer"]


@pytest.mark.parametrize(
    "question",
    [
        "How do I bake sourdough bread?",
        "What does gardening insurance cost per year in Norway?",  # one word of five
        "怎样预订酒店？",
        "会议在哪里开？",
        "",
        "?!",
        '"; DROP TABLE words; -- AND OR NOT NEAR( * ^',
    ],
)
def test_nothing_is_found_where_nothing_answers(library, question):
    library("meeting", ("会", "大会的结果已经公布。"))
    assert search(library, question) == []


def test_common_words_alone_are_searched_when_a_question_has_no_others(library):
    library("answer", ("Hamlet", "To be or not to be."))
    assert [p.file for p in search(library, "to be or not to be")] == ["answer"]
    assert terms_of("是什么") != []


def test_a_rare_word_counts_more_than_a_common_one(library):
    library("rare", ("Notes", "The xylophone stands in the corner."))
    assert [p.file for p in search(library, "xylophone gardening")] == ["rare"]


def test_headings_count(library):
    library("a", ("Warranty", "Two years from the date of purchase."))
    library("b", ("Other", "No warranty is given for used goods, which were sold as seen here."))
    assert [p.file for p in search(library, "warranty")] == ["a", "b"]


def test_fusion_prefers_what_both_rankings_know(library):
    library("words", ("A", "engine oil engine oil engine oil"))
    (both,) = library("both", ("B", "The engine needs oil now and then, among other things."))
    (meaning_only,) = library("meaning", ("C", "Lubricate the motor."))
    found = search(library, "engine oil", Meaning([(meaning_only, 0.9), (both, 0.8)], floor=0.5))
    assert [(p.file, p.why) for p in found] == [  # equal scores: in the order of indexing
        ("both", "both"),
        ("words", "words"),
        ("meaning", "meaning"),
    ]
    assert found[0].score == pytest.approx(1 / 62 + 1 / 62)
    assert found[1].score == found[2].score == pytest.approx(1 / 61)
    assert found[1].similarity is None and found[2].similarity == 0.9


def test_what_is_far_in_meaning_is_not_an_answer(library):
    (near,) = library("near", ("A", "Lubricate the motor."))
    (far,) = library("far", ("B", "Paint the fence."))
    assert search(library, "oil", Meaning([(near, 0.49), (far, 0.2)], floor=0.5)) == []
    found = search(library, "oil", Meaning([(near, 0.5), (far, 0.2)], floor=0.5))
    assert [p.file for p in found] == ["near"]


def test_passages_that_say_the_same_are_shown_once(library):
    text = "Payment is due within thirty days of the invoice date, without any deduction."
    library("contract-v1", ("Terms", text))
    library("contract-v2", ("Terms", text + " Really."))
    library("other", ("Terms", "Payment by card is possible."))
    assert [p.file for p in search(library, "payment due")] == ["contract-v1", "other"]


def test_neighbours_become_one_passage_with_the_text_of_both(library):
    first = "The turbine has nine blades. The shared sentence about turbine parts. "
    second = "The shared sentence about turbine parts. The turbine turns left, and quickly so. "
    shared = len("The shared sentence about turbine parts. ")
    ids = library(
        "manual", ("Turbine", first), ("Turbine", second), ("Pump", "No match."), overlap=shared
    )
    (found,) = search(library, "turbine")
    assert found.id == f"{ids[0]}-{ids[1]}"
    assert found.text == first + second[shared:]
    assert (found.start, found.end) == (0, len(found.text))


def test_neighbours_under_other_headings_stay_apart(library):
    library("manual", ("Turbine", "The turbine spins."), ("Safety", "Never touch a turbine."))
    assert len(search(library, "turbine")) == 2


def test_passages_without_a_file_are_not_found(library):
    library("gone", ("A", "A unique zebra."))
    library.db.execute("DELETE FROM files WHERE path = 'gone'")
    assert search(library, "zebra") == []


def test_the_commonest_words_are_left_out_where_they_would_rank_everything(library, monkeypatch):
    library("answer", ("A", "A zebra in the gardening notes."))
    monkeypatch.setattr(rarity, "_MOST_ROWS", 10)
    found = rarity_of(library.db, terms_of("zebra gardening"))
    assert found.match_expression() == '"zebra"'
    assert [p.file for p in search(library, "zebra gardening")] == ["answer"]


def test_coverage_is_the_weighed_share_of_the_question(library):
    found = rarity_of(library.db, terms_of("gardening weather unknownword"))
    assert found.coverage(set(words_of("gardening weather unknownword"))) == 1
    assert found.coverage(set()) == 0
    assert found.coverage({"unknownword"}) > 0.9  # two words of every passage tell little
    with_known_pairs = rarity_of(library.db, [Term("pairs", ("甲乙", "乙丙"))])
    assert with_known_pairs.coverage({"甲乙"}) == pytest.approx(2 / 3)


@given(st.text(max_size=80))
def test_any_question_becomes_words_and_never_syntax(question):
    for term in terms_of(question):
        assert all('"' not in word and word.strip() == word and word for word in term.words)


def test_nearest_are_the_true_nearest_and_follow_the_index(library):
    rng = np.random.default_rng(1)
    ids = [i for (i,) in library.db.execute("SELECT id FROM passages ORDER BY id")]
    index = VectorIndex()

    def add(passages: list[int]) -> np.ndarray:
        rows = rng.standard_normal((len(passages), 32)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        library.db.executemany(
            "INSERT INTO vectors(passage_id, embedder_id, vector) VALUES(?, 1, ?)",
            [(p, r.astype(STORED).tobytes()) for p, r in zip(passages, rows, strict=True)],
        )
        return rows

    def check(owners: list[int], rows: np.ndarray) -> None:
        index.refresh(library.db, 1, 32)
        question = rows[3]
        best: dict[int, float] = {}
        for owner, row in zip(owners, rows, strict=True):
            best[owner] = max(best.get(owner, -1.0), float(row @ question))
        expected = sorted(best.items(), key=lambda x: -x[1])[:5]
        found = index.nearest(question, 5)
        assert [p for p, _ in found] == [p for p, _ in expected]
        assert [c for _, c in found] == pytest.approx([c for _, c in expected], abs=2e-3)

    first = add(ids)
    check(ids, first)
    second = add(ids[:10])  # second windows of the same passages
    check(ids + ids[:10], np.concatenate([first, second]))
    library.db.execute("DELETE FROM vectors WHERE passage_id = ?", (ids[5],))
    keep = [i for i, owner in enumerate(ids + ids[:10]) if owner != ids[5]]
    check([(ids + ids[:10])[i] for i in keep], np.concatenate([first, second])[keep])
    index.refresh(library.db, 2, 16)  # another model without vectors yet
    assert index.nearest(np.ones(16, np.float32), 5) == []


def test_what_a_model_knows_is_measured(tmp_path):
    class EnglishOnly(FakeEmbedder):
        def embed(self, texts, kind="passage"):
            rows = super().embed(texts, kind)
            for row, text in zip(rows, texts, strict=True):
                if language_of(text) == "chinese":  # every ideograph is the same unknown word
                    row[:] = 0
                    row[0] = 1
            return rows

    both = measure_traits(FakeEmbedder(tmp_path))
    assert both.knows == {"english": True, "chinese": True}
    one = measure_traits(EnglishOnly(tmp_path))
    assert one.knows == {"english": True, "chinese": False}
    cosine = 1 / (1 + 1.2**2)  # of a question and its answer in the fake model; others have 0
    assert one.floor["english"] == pytest.approx(0.75 * cosine, abs=1e-5)


def test_the_language_of_a_question_is_that_of_its_letters():
    assert language_of("NPU 的图怎样证明") == "chinese"
    assert language_of("What does 合同 mean in English?") == "english"
    assert language_of("123") == "english"
