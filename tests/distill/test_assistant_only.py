"""Which positions count: from messages, from edgekit's prompts, through cuts, files and a cache."""

import json
import shutil

import numpy as np
import pytest
import torch

from edgekit.cli.main import main
from edgekit.distill.cache import LogitCache
from edgekit.distill.calibration import make_sequences, plan_rows, prompt_tokens
from edgekit.distill.divergence import measure, remember
from edgekit.distill.documents import read_documents, read_domains
from edgekit.distill.loading import load_model
from edgekit.distill.teacher import teacher_logits
from edgekit.errors import BadInputError
from edgekit.evaluate import evaluate
from edgekit.progress import Silent
from edgekit.recipe import DataSection
from edgekit.runtimes.engine import load_engine
from edgekit.sequences import (
    FILE_NAME,
    TokenSequence,
    read_sequences,
    sequences_digest,
    write_sequences,
)
from edgekit.text import ChatTokenizer

ANSWERS = ["Paris.", "The lazy dog jumps over the quick brown fox, and then the sun sets."]
MESSAGES = [
    {"role": "user", "content": "What is the capital of France? " * 6},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And who jumps? " * 8},
    {"role": "assistant", "content": ANSWERS[1]},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_mixtral):
    return ChatTokenizer(tiny_mixtral)


def rows(path, *values):
    path.write_text("\n".join(map(json.dumps, values)))
    return str(path)


def section(*files, **options):
    values = {"held_out_tokens": 0, "tokens": 4096, "sequence_length": 16, "count": "assistant"}
    return DataSection(files=files, **{**values, **options})


def test_the_positions_that_count_predict_the_answers(tokenizer, tmp_path):
    params = section(rows(tmp_path / "chat.jsonl", {"messages": MESSAGES}), sequence_length=4096)
    (found,) = read_documents(tokenizer, params)
    (end,) = tokenizer.encode("<|im_end|>", allow_special=True)
    expected = [t for answer in ANSWERS for t in [*tokenizer.encode(answer), end]]
    assert found.tokens[1:][found.counted[:-1]].tolist() == expected
    assert not found.counted[-1]
    tokens = tokenizer.encode_chat(MESSAGES, add_generation_prompt=False)
    assert found.tokens.tolist() == tokens


def test_pieces_keep_their_part_and_those_without_an_answer_are_left_out(tokenizer, tmp_path):
    file = rows(tmp_path / "chat.jsonl", {"messages": MESSAGES})
    (whole,) = read_documents(tokenizer, section(file, sequence_length=4096))
    pieces = read_documents(tokenizer, section(file))
    starts = range(0, len(whole.tokens), 16)
    kept = [s for s in starts if whole.counted[s : s + 16].any() and len(whole.tokens) - s >= 8]
    assert 2 <= len(pieces) == len(kept) < len(starts)
    for piece, start in zip(pieces, kept, strict=True):
        np.testing.assert_array_equal(piece.tokens, whole.tokens[start : start + 16])
        np.testing.assert_array_equal(piece.counted, whole.counted[start : start + 16])
    short = read_documents(tokenizer, section(file, tokens=24))  # what is left out takes no room
    assert [len(p.tokens) for p in short] == [16, 8]


def test_text_counts_wholly_and_domains_keep_the_positions(tokenizer, tmp_path):
    file = rows(tmp_path / "mixed.jsonl", {"text": "The quick brown fox. " * 4},
                {"messages": MESSAGES})  # fmt: skip
    params = DataSection(
        domains={"mine": {"files": (file,)}}, held_out_tokens=0, count="assistant",
    )  # fmt: skip
    text, chat = read_domains(tokenizer, params)
    assert text.counted is None
    assert (text.domain, chat.domain) == ("mine", "mine")
    assert 0 < chat.positions < len(chat.tokens)


def test_a_file_round_trip_keeps_the_digest(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        TokenSequence(np.arange(9, dtype=np.int32), "a", False),
        TokenSequence(np.arange(9, dtype=np.int32), "b", True, rng.random(9) < 0.5),
        TokenSequence(np.arange(9, dtype=np.int32), "b", True, np.ones(9, np.bool_)),
    ]
    write_sequences(tmp_path / FILE_NAME, made)
    found = read_sequences(tmp_path / FILE_NAME)
    assert [s.positions for s in found] == [s.positions for s in made]
    assert [s.counted is None for s in found] == [True, False, True]
    assert sequences_digest(found) == sequences_digest(made)


def test_a_conversation_whose_answers_cannot_be_told_names_its_file(tiny_mixtral, tmp_path):
    shutil.copytree(tiny_mixtral, tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace(
        "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>"
    ))  # fmt: skip
    file = rows(tmp_path / "chat.jsonl", {"messages": MESSAGES})
    with pytest.raises(BadInputError, match=r"chat\.jsonl: .*does not show message 2"):
        read_documents(ChatTokenizer(tmp_path / "model"), section(file))


def test_messages_without_an_answer_are_too_little_text(tokenizer, tmp_path):
    file = rows(tmp_path / "chat.jsonl", {"messages": MESSAGES[:1]})
    with pytest.raises(BadInputError, match=r"too little text .*of an assistant's turns"):
        read_documents(tokenizer, section(file))


def test_prompts_by_hand():
    """[7 8] is asked, 5 9 answered; 9 ends an answer, then [6] is asked, and [7 8] again."""
    tokens = np.array([7, 8, 5, 9, 6, 9, 7, 8, 9, 6, 4], np.int32)
    asked = prompt_tokens(tokens, [[7, 8], [6]], frozenset({9}))
    assert asked.tolist() == [True, True, False, False, True, False, True, True, False, True,
                              False]  # fmt: skip


def test_only_what_the_teacher_wrote_after_a_prompt_counts(tiny_mixtral, tokenizer, tmp_path):
    params = DataSection(tokens=1024, held_out_tokens=256, sequence_length=64, count="assistant")
    make_sequences(tiny_mixtral, params, tmp_path, Silent())
    found = read_sequences(tmp_path / FILE_NAME)
    every = {(r.domain, r.held_out, tuple(r.prompts[0][:64])): r for r in
             plan_rows(tokenizer, params)}  # fmt: skip
    assert {s.held_out for s in found} == {True, False}
    for sequence in found:
        row = next(r for (domain, held_out, head), r in every.items()
                   if (domain, held_out) == (sequence.domain, sequence.held_out)
                   and sequence.tokens[: len(head)].tolist() == list(head))  # fmt: skip
        asked = len(row.prompts[0])
        assert not sequence.counted[: asked - 1].any()
        assert sequence.counted[asked - 1]
    plain = tmp_path / "plain"
    plain.mkdir()
    make_sequences(tiny_mixtral, params.model_copy(update={"count": "all"}), plain, Silent())
    texts = [s.tokens.tolist() for s in read_sequences(plain / FILE_NAME)]
    assert all(s.tokens.tolist() in texts for s in found)  # the same text, other positions


def test_prompts_that_leave_no_room_are_refused(tiny_mixtral, tmp_path):
    params = DataSection(
        domains=("chat",), tokens=64, held_out_tokens=0, sequence_length=16, count="assistant"
    )
    with pytest.raises(BadInputError, match="leave no room for an answer"):
        make_sequences(tiny_mixtral, params, tmp_path, Silent())


def test_capture_and_training_from_the_command_line(tiny_mixtral, tiny_model, tmp_path, capsys):
    data = rows(tmp_path / "chat.jsonl", *[
        {"messages": [{"role": "user", "content": f"{n} is what?"},
                      {"role": "assistant", "content": f"{ANSWERS[1]} {n}"}]}
        for n in range(30)
    ])  # fmt: skip
    cache = tmp_path / "cache"
    arguments = ["distill", "capture", str(tiny_mixtral), "--data", data, "--assistant-only"]
    assert main([*arguments, "--out", str(cache)]) == 0, capsys.readouterr().err
    opened = LogitCache(cache)
    for number, sequence in enumerate(opened.sequences):
        assert 0 < len(opened.targets(number)) == sequence.positions < len(sequence.tokens)
    assert (
        main(
            [
                "distill",
                "train",
                str(tiny_model("mixtral", seed=3)),
                "--cache",
                str(cache),
                "--steps",
                "2",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    ), capsys.readouterr().err
    again = ["distill", "capture", str(tiny_mixtral), "--sequences", str(cache)]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    assert LogitCache(tmp_path / "again").index == opened.index
    assert main([*again, "--assistant-only", "--out", str(tmp_path / "x")]) == 2
    assert "says itself which positions count" in capsys.readouterr().err


def masked_text():
    rng = np.random.default_rng(2)
    return [
        TokenSequence(rng.integers(3, 500, 20).astype(np.int32), "chat", True, rng.random(20) < 0.4)
        for _ in range(3)
    ]


def test_a_remembered_teacher_is_measured_where_it_counts(tiny_mixtral, tiny_model):
    text = masked_text()
    teacher, student = load_model(tiny_mixtral), load_model(tiny_model("mixtral", seed=3))
    measured = measure(student, remember(teacher, text, Silent()), Silent())
    for sequence, values in zip(text, measured.values, strict=True):
        ids = torch.from_numpy(sequence.tokens.astype(np.int64))[None]
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (teacher, student))
        expected = (p.exp() * (p - q)).sum(-1)[torch.from_numpy(sequence.counted)]
        np.testing.assert_allclose(values, expected, atol=1e-5)


def test_evaluation_counts_the_same_positions(tiny_llama, tiny_model, variant, tmp_path):
    other = tiny_model("llama", seed=3)
    text = masked_text()
    report = evaluate(
        variant("llama"), teacher_logits(other), 1, text, ["openvino-cpu"], tmp_path, Silent()
    )
    assert report.positions == sum(int(s.counted[:-1].sum()) for s in text)
    engine, teacher = load_engine(variant("llama"), "openvino-cpu"), teacher_logits(other)
    values = []
    for sequence in text:
        p = torch.from_numpy(teacher(sequence.tokens)).log_softmax(-1)
        q = torch.from_numpy(engine.logits(sequence.tokens.tolist())).log_softmax(-1)
        values.append((p.exp() * (p - q)).sum(-1).numpy()[:-1][sequence.counted[:-1]])
    engine.close()
    assert report.results[0].quality["all"].kl.value == pytest.approx(
        np.concatenate(values).mean(), rel=1e-3
    )
