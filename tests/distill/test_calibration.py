"""Calibration text: sampled rows, user files, splits."""

import json

import numpy as np
import pytest

from edgekit.distill.calibration import load_prompts, make_sequences, plan_rows
from edgekit.distill.documents import read_documents
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DOMAINS, DataSection
from edgekit.sequences import FILE_NAME, read_sequences
from edgekit.text import ChatTokenizer

SMALL = DataSection(tokens=256, held_out_tokens=96, sequence_length=32)


@pytest.fixture(scope="module")
def tokenizer(tiny_mixtral):
    return ChatTokenizer(tiny_mixtral)


def test_prompts_exist_in_every_domain_and_both_languages():
    prompts = load_prompts()
    assert set(prompts) == set(DOMAINS)
    assert all(len(set(p)) == len(p) >= 20 for p in prompts.values())
    assert all(any("\u4e00" <= c <= "\u9fff" for c in p) for p in prompts["chinese"])


def test_no_prompt_is_in_both_splits(tokenizer):
    rows = plan_rows(tokenizer, SMALL)
    split = {h: {tuple(p) for r in rows if r.held_out == h for p in r.prompts} for h in (0, 1)}
    assert split[0] and split[1] and not split[0] & split[1]


def test_rows_have_the_asked_size_begin_with_their_prompt_and_repeat(tiny_mixtral, tmp_path):
    outs = [tmp_path / n for n in "ab"]
    for out in outs:
        out.mkdir()
        report = make_sequences(tiny_mixtral, SMALL, out, Silent())
    sequences = read_sequences(outs[0] / FILE_NAME)
    assert sum(len(s.tokens) for s in sequences if not s.held_out) == 256
    assert sum(report.held_out_tokens.values()) == 96
    rows = plan_rows(ChatTokenizer(tiny_mixtral), SMALL)
    for row, sequence in zip(rows, sequences):
        prompt = row.prompts[0][: len(sequence.tokens)]
        np.testing.assert_array_equal(sequence.tokens[: len(prompt)], prompt)
    assert (outs[0] / FILE_NAME).read_bytes() == (outs[1] / FILE_NAME).read_bytes()


def test_an_interrupted_run_does_not_sample_twice(tiny_mixtral, tmp_path, monkeypatch):
    import edgekit.distill.calibration as module

    monkeypatch.setattr(module, "BATCH", 4)
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir(), scratch.mkdir()
    make_sequences(tiny_mixtral, SMALL, out, Silent(), scratch)
    first = (out / FILE_NAME).read_bytes()
    monkeypatch.setattr(module, "sample", lambda *_: pytest.fail("sampled again"))
    make_sequences(tiny_mixtral, SMALL, out, Silent(), scratch)
    assert (out / FILE_NAME).read_bytes() == first


WORDS = [f"Document {i}: the quick brown fox jumps over the lazy dog. " * 4 for i in range(30)]


def write(path, kind):
    rows = [
        {"messages": [{"role": "user", "content": t}]} if i % 2 else {"text": t}
        for i, t in enumerate(WORDS)
    ]
    if kind == "txt":
        path.write_text("\n\n".join(f"{w} {n}" * 2 for n, w in enumerate(WORDS * 8)))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": WORDS}), path)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_user_files_are_split_by_document(tokenizer, tmp_path, kind):
    path = tmp_path / f"mine.{kind}"
    write(path, kind)
    params = DataSection(files=(str(path),), tokens=512, held_out_tokens=256, sequence_length=32)
    sequences = read_documents(tokenizer, params)
    assert {s.domain for s in sequences} == {"mine"}
    assert {s.held_out for s in sequences} == {True, False}
    assert sum(len(s.tokens) for s in sequences if not s.held_out) <= 512
    assert max(len(s.tokens) for s in sequences) <= 32


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.txt", None, "no such file"),
        ("x.docx", b"x", "not .txt, .jsonl or .parquet"),
        ("x.txt", b"\xff\xfe\x00bad", "not UTF-8"),
        ("x.txt", b"short", "too little text"),
        ("x.jsonl", b'{"text": "a"}\n{oops', "line 2 is not JSON"),
        ("x.jsonl", b"[1]", "line 1 is not an object"),
        ("x.jsonl", b'{"txt": "a"}', "neither text"),
        ("x.parquet", b"PAR1 not really", "not a whole parquet"),
    ],
)
def test_bad_files_are_named(tokenizer, tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=sentence):
        read_documents(tokenizer, DataSection(files=(str(path),)))
