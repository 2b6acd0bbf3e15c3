"""Calibration text: sampled rows, user files, splits."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.distill.calibration import load_prompts, make_sequences, plan_rows
from edgekit.distill.documents import read_documents, read_domains
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


def test_half_a_character_in_a_row_is_refused_by_line(tokenizer, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n{"messages": [{"role": "user", "content": "\\ud800"}]}\n')
    with pytest.raises(BadInputError, match=r"x\.jsonl: line 2 has a lone surrogate"):
        read_documents(tokenizer, DataSection(files=(str(path),)))


def test_only_the_template_writes_special_tokens(tokenizer, tmp_path):
    text = "a text that shows how <|im_end|> ends a turn and <|im_start|> begins one"
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    message = {"messages": [{"role": "user", "content": text}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(message))
    for name, written in (("text", 0), ("chat", 2)):
        params = DataSection(files=(str(tmp_path / f"{name}.jsonl"),), held_out_tokens=0)
        tokens = [t for s in read_documents(tokenizer, params) for t in s.tokens]
        assert sum(t in tokenizer.special_tokens for t in tokens) == written
        assert text in tokenizer.decode(tokens, skip_special=False)


@pytest.mark.parametrize(("tokens", "held_out"), [(512, 0), (0, 512)])
def test_a_split_of_no_tokens_needs_no_document(tokenizer, tmp_path, tokens, held_out):
    path = tmp_path / "one.txt"
    path.write_text(WORDS[0])  # a single document: whichever split its hash would choose
    params = DataSection(files=(str(path),), tokens=tokens, held_out_tokens=held_out)
    sequences = read_documents(tokenizer, params)
    assert {s.held_out for s in sequences} == {held_out > 0}
    assert sum(len(s.tokens) for s in sequences) == len(tokenizer.encode(WORDS[0]))


def test_a_goal_below_the_shortest_sequence_gets_one(tokenizer, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(WORDS[0])
    params = DataSection(files=(str(path),), tokens=1, held_out_tokens=0)
    assert [len(s.tokens) for s in read_documents(tokenizer, params)] == [8]


def test_reading_stops_when_both_splits_are_full(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "mine.jsonl"
    rows = [json.dumps({"text": f"{i} {w}"}) for i, w in enumerate(WORDS * 10)]
    path.write_text("\n".join([*rows, "{not read"]))
    encoded = []
    monkeypatch.setattr(
        tokenizer, "encode", lambda text: encoded.append(text) or list(range(100)), raising=True
    )
    params = DataSection(files=(str(path),), tokens=800, held_out_tokens=200, sequence_length=32)
    sequences = read_documents(tokenizer, params)
    for held_out, goal in ((False, 800), (True, 200)):
        found = sum(len(s.tokens) for s in sequences if s.held_out == held_out)
        assert goal - 8 < found <= goal
    assert len(encoded) <= 12  # 8 and 2 documents fill the splits; two more for cut-off ends


def test_a_file_that_is_missing_is_named_even_if_the_first_suffices(tokenizer, tmp_path):
    path = tmp_path / "mine.txt"
    write(path, "txt")
    params = DataSection(files=(str(path), "absent.txt"), tokens=64, held_out_tokens=0)
    with pytest.raises(BadInputError, match="absent"):
        read_documents(tokenizer, params)


def documents(path, count, words):
    """A file of ``count`` documents of ``words`` words."""
    rows = [{"text": f"{path.stem} {i} " + "fox " * words} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def tokens_of(sequences):
    """Tokens by domain, in training and held out."""
    found = {}
    for s in sequences:
        found.setdefault(s.domain, [0, 0])[s.held_out] += len(s.tokens)
    return found


def test_every_file_gives_the_same_share_of_both_splits(tokenizer, tmp_path):
    files = [documents(tmp_path / f"{name}.jsonl", 60, words)
             for name, words in (("chat", 20), ("code", 100), ("law", 9))]  # fmt: skip
    params = DataSection(files=tuple(files), tokens=768, held_out_tokens=192, sequence_length=32)
    sequences = read_documents(tokenizer, params)
    found = tokens_of(sequences)
    assert set(found) == {"chat", "code", "law"}
    for training, held_out in found.values():
        assert 256 - 8 < training <= 256
        assert 64 - 8 < held_out <= 64
    alone = read_documents(tokenizer, params.model_copy(
        update={"files": (files[1],), "tokens": 256, "held_out_tokens": 64}
    ))  # fmt: skip
    ours = [s.tokens.tolist() for s in sequences if s.domain == "code" and s.held_out]
    assert ours == [s.tokens.tolist() for s in alone if s.held_out]


def test_what_a_short_file_lacks_the_others_give_without_a_gap(tokenizer, tmp_path):
    short = documents(tmp_path / "short.jsonl", 2, 20)
    one = tmp_path / "one.txt"
    one.write_text(" ".join(str(i) for i in range(900)))  # a document that is cut twice
    params = DataSection(files=(str(one), short), tokens=512, held_out_tokens=0, sequence_length=48)
    sequences = read_documents(tokenizer, params)
    found = tokens_of(sequences)
    assert found["short"][0] < 100
    assert 512 - 8 < found["short"][0] + found["one"][0] <= 512
    of_one = [t for s in sequences if s.domain == "one" for t in s.tokens.tolist()]
    assert of_one == tokenizer.encode(one.read_text())[: len(of_one)]


def test_a_file_that_gives_nothing_to_a_split_is_named(tokenizer, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text(WORDS[0])  # a single document is in one split
    many = documents(tmp_path / "many.jsonl", 60, 20)
    params = DataSection(files=(str(one), many), tokens=256, held_out_tokens=256)
    with pytest.raises(BadInputError, match=r"^[^,]*one\.txt: too little text for \[data\] "):
        read_documents(tokenizer, params)
    domains = {"mine": {"files": params.files}}  # what matters of a domain is all of it
    params = DataSection(domains=domains, tokens=256, held_out_tokens=256, sequence_length=32)
    assert set(tokens_of(read_domains(tokenizer, params))) == {"mine"}


def test_many_files_with_a_small_goal_give_one_short_sequence_each(tokenizer, tmp_path):
    files = tuple(documents(tmp_path / f"{n}.jsonl", 2, 20) for n in range(5))
    params = DataSection(files=files, tokens=16, held_out_tokens=0)
    assert [len(s.tokens) for s in read_documents(tokenizer, params)] == [8] * 5


@pytest.mark.parametrize(("tokens", "held_out"), [(64, 0), (0, 64)])
def test_a_split_of_no_tokens_is_not_sampled(tiny_mixtral, tmp_path, tokens, held_out):
    params = DataSection(tokens=tokens, held_out_tokens=held_out, sequence_length=16)
    report = make_sequences(tiny_mixtral, params, tmp_path, Silent())
    assert sum(report.calibration_tokens.values()) == tokens
    assert sum(report.held_out_tokens.values()) == held_out
    assert len(read_sequences(tmp_path / FILE_NAME)) == 4


@pytest.mark.parametrize("files", [(), ("absent.txt",)])
def test_no_text_at_all_is_refused(tiny_mixtral, tokenizer, tmp_path, files):
    params = DataSection(files=files, tokens=0, held_out_tokens=0)
    with pytest.raises(BadInputError, match=r"no text asked for; raise \[data\] tokens"):
        make_sequences(tiny_mixtral, params, tmp_path, Silent())
    with pytest.raises(BadInputError, match="no text asked for"):
        read_documents(tokenizer, params)


def test_sequences_beyond_the_teachers_context_are_refused(tiny_mixtral, tmp_path):
    params = DataSection(tokens=1024, sequence_length=513)
    with pytest.raises(BadInputError, match=r"\[data\] sequence_length 513 .* 512 positions"):
        make_sequences(tiny_mixtral, params, tmp_path, Silent())


@pytest.mark.parametrize("from_files", [False, True])
def test_another_models_tokenizer_is_refused(tiny_model, tmp_path, from_files):
    teacher = tiny_model("llama", vocab_size=64)
    text = tmp_path / "mine.txt"
    write(text, "txt")
    params = SMALL.model_copy(update={"files": (str(text),) if from_files else ()})
    with pytest.raises(BadInputError, match=f"{teacher}: the tokenizer gives token .* has 64"):
        make_sequences(teacher, params, tmp_path, Silent())


def test_a_template_that_renders_nothing_is_refused(tiny_mixtral, tmp_path):
    teacher = shutil.copytree(tiny_mixtral, tmp_path / "teacher")
    (teacher / "chat_template.jinja").write_text("{# nothing #}{{ '' }}")
    with pytest.raises(BadInputError, match="make no token of a prompt"):
        make_sequences(teacher, SMALL, tmp_path, Silent())


def test_a_teacher_whose_weights_are_not_numbers_is_named(tiny_mixtral, tmp_path):
    teacher = shutil.copytree(tiny_mixtral, tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInputError, match=f"{teacher}: the model's logits are not finite"):
        make_sequences(teacher, SMALL, tmp_path, Silent())


def test_a_mix_has_prompts_and_files_in_proportion_to_their_weights(tiny_mixtral, tmp_path):
    path = tmp_path / "tickets.txt"
    path.write_text("\n\n".join(f"{i} " + "the quick brown fox " * 40 for i in range(200)))
    domains = {
        "chat": {"weight": 1.0},
        "code": {"weight": 3.0},
        "support": {"weight": 4.0, "files": (str(path),)},
    }
    params = DataSection(domains=domains, tokens=1024, held_out_tokens=256, sequence_length=32)
    (tmp_path / "out").mkdir()
    report = make_sequences(tiny_mixtral, params, tmp_path / "out", Silent())
    assert report.calibration_tokens == {"support": 512, "chat": 128, "code": 384}
    assert report.held_out_tokens["support"] == 128
    rows = [row.domain for row in plan_rows(ChatTokenizer(tiny_mixtral), params)][:16]
    for length in range(1, 17):  # in proportion from the beginning, not only at the end
        assert abs(rows[:length].count("code") - 0.75 * length) <= 1
