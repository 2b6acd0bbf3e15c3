"""What is searched is found: exactly, in Chinese too, and whatever else a query contains."""

from __future__ import annotations

import sqlite3
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.assistant.segment import (
    TOKENIZER,
    find_marks,
    fold,
    index_text,
    match_all,
    match_any,
    words,
)

IDEOGRAPHS = "中国人学机器习语言"


def found(texts: list[str], query: str, match=match_all) -> list[int]:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE t USING fts5(x, content='', tokenize='{TOKENIZER}')")
    rows = [(i, index_text(text)) for i, text in enumerate(texts)]
    connection.executemany("INSERT INTO t(rowid, x) VALUES (?, ?)", rows)
    expression = match(query)
    if not expression:
        return []
    sql = "SELECT rowid FROM t WHERE t MATCH ? ORDER BY rowid"
    return [row[0] for row in connection.execute(sql, (expression,))]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text(IDEOGRAPHS + "，。 ab", max_size=12), min_size=1, max_size=8),
    st.text(IDEOGRAPHS, min_size=1, max_size=4),
)
def test_a_chinese_string_is_found_exactly_where_it_stands(texts: list[str], query: str) -> None:
    assert found(texts, query) == [i for i, text in enumerate(texts) if query in text]


def test_runs_that_a_comma_parts_are_not_read_as_one() -> None:
    assert found(["中国，国人", "中国人"], "中国人") == [1]
    assert list(words("机器学习")) == ["机器", "器学", "学习", "习"]


def test_words_are_whole_except_the_last_which_may_be_unfinished() -> None:
    texts = ["quantised weights", "quantised weight", "unquantised weighting"]
    assert found(texts, "quantised weight") == [0, 1]
    assert found(texts, "quantised weight ") == [1]
    assert found(texts, "quant weights") == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("ＧＰＵ 显存", "gpu 显存"), ("Café crème", "cafe CREME"), ("STRASSE", "straße"),
        ("ﾊﾞﾅﾅ", "バナナ"), ("Ёлка", "елка"), ("한국어를", "한국"), ("e\u0301t\u0065", "été"),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", "한국"), ("第②章", "第2章"), ("𠮷野家", "𠮷野"),
        ("call foo_bar(3.14)", "foo_bar 3.14"), ("用GPT写诗", "GPT写诗"), ("学GPT", "学gpt"),
        ("int8模型GPT", "模型gpt"), ("İstanbul", "istanbul"),
        ("\u2ed3度", "长度"), ("\u2f50较", "比较"), ("\U00031350\U00031351", "\U00031350"),
    ],
)  # fmt: skip
def test_width_case_and_accents_make_no_difference(text: str, query: str) -> None:
    assert found([text, "other"], query) == [0]
    marks = find_marks(text, query)
    assert "".join(fold(text[a:b]) for a, b in marks) == "".join(fold(query).split()).replace(
        "_", ""
    ).replace(".", "")


@pytest.mark.parametrize(
    "query",
    ['"', "* OR", "a AND", "NOT", "x:y", "NEAR(a b)", "-a", "^a", "a*b", "{x}:a", "';--",
     "\x00", "(" * 99],
)  # fmt: skip
def test_a_query_is_never_syntax(query: str) -> None:
    assert found(["zzz"], query) == []
    assert found(["zzz"], query, match_any) == []


@settings(max_examples=200, deadline=None)
@given(st.text(), st.text(max_size=30))
def test_any_text_and_any_query_are_taken(text: str, query: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    hits = found([text], query)
    assert isinstance(hits, list)
    marks = find_marks(text, query)
    assert all(0 <= a < b <= len(text) for a, b in marks)
    assert all(b <= c for (_, b), (c, _) in pairwise(marks))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20))
def test_a_text_is_found_by_itself(text: str) -> None:
    assert found([text], text) == ([0] if any(words(text)) else [])


def test_marks_count_characters_of_the_text_as_written() -> None:
    assert find_marks("e\u0301e\u0301 用ＧＰＵ跑", "gpu") == [(6, 9)]
    assert find_marks("weights and 机器学习，学习", "weights 学习") == [
        (0, 7), (14, 16), (17, 19)
    ]  # fmt: skip
    assert find_marks("¼", "1") == [(0, 1)]
    assert find_marks("cat concatenate cat", "cat ") == [(0, 3), (16, 19)]


def test_a_question_finds_what_shares_parts_of_it() -> None:
    texts = ["量化参数在配方里", "无关的文字", "how weights are grouped"]
    assert found(texts, "如何配置量化参数？", match_any) == [0]
    assert found(texts, "How are the weights quantised?", match_any) == [2]
    assert found(texts, "字", match_any) == [1]


def test_a_pile_of_accents_costs_no_more_than_other_text() -> None:
    piled = "a" + "\u0300\u0327\u3099" * 300_000 + "b 学习"  # quadratic: an hour
    assert index_text(piled) == "ab 学习 习"
    assert find_marks(piled, "学习") == [(len(piled) - 2, len(piled))]
