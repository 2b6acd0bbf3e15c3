"""The student learns on what it writes itself: it comes nearer to the teacher, and the same way
after an interruption."""

import json
import shutil

import numpy as np
import pytest
import torch
from training_runs import interrupted_in

import edgekit.distill.on_policy as module
from edgekit.distill.calibration import load_prompts
from edgekit.distill.capture import CaptureOptions, capture
from edgekit.distill.divergence import remember
from edgekit.distill.on_policy import answered, local_teacher, on_policy, stage_section
from edgekit.distill.open_model import open_model
from edgekit.distill.prompts import Prompt, read_prompts, rounds
from edgekit.distill.stage import open_student
from edgekit.distill.targets import TopTargets
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DataSection, DistillSection
from edgekit.recipe_stages import OnPolicySection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences
from edgekit.text import ChatTokenizer

BASE = DistillSection(steps=0, batch_tokens=160, trainable=("all",))


def section(**options):
    values = {"steps": 8, "round_steps": 3, "new_tokens": 12, "top_k": 64, "learning_rate": 3e-3}
    return OnPolicySection(**{**values, **options})


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    lengths = [3, 5, 4, 9]
    made = [rng.integers(3, 40, lengths[i % 4]).tolist() for i in range(24)]
    return [Prompt(tuple(tokens), "ab"[i // 4 % 2], i % 4 == 3) for i, tokens in enumerate(made)]


def trained(student, teacher, prompts, out, params, **options):
    out.mkdir()
    return on_policy(student, teacher, prompts, params, BASE, out, Silent(), **options)


def test_reverse_kl_to_the_teacher_falls_on_what_the_student_writes(
    tiny_mixtral, tiny_model, prompts, tmp_path
):
    params = section(steps=40, round_steps=5, learning_rate=1e-2, top_k=512)
    report = trained(tiny_model("mixtral", seed=3), tiny_mixtral, prompts, tmp_path / "out", params)
    assert report.rounds == 8 and len(report.training.losses) == 40
    assert report.own_after.all.value < 0.5 * report.own_before.all.value
    assert report.own_after.acceptance.at_most > report.own_before.acceptance.at_most
    assert set(report.own_after.domains) == {"a", "b"}


def test_interrupted_rounds_end_in_the_same_weights(
    tiny_mixtral, tiny_model, prompts, tmp_path, monkeypatch
):
    student, scratch = tiny_model("mixtral", seed=3), tmp_path / "scratch"
    whole = trained(student, tiny_mixtral, prompts, tmp_path / "whole", section())
    written, original = [], module._Writer.write

    def counting(self, questions):
        written.append(len(questions))
        if len(written) == 3:  # what was measured, the first round, and in the second
            raise KeyboardInterrupt
        return original(self, questions)

    monkeypatch.setattr(module._Writer, "write", counting)
    with pytest.raises(KeyboardInterrupt):
        trained(student, tiny_mixtral, prompts, tmp_path / "cut", section(), scratch=scratch)
    state = json.loads((scratch / "state" / "state.json").read_text())
    assert state["step"] == 3
    again = trained(student, tiny_mixtral, prompts, tmp_path / "again", section(), scratch=scratch)
    assert len(written) == 3 + 3  # two rounds more, and what was measured at the end
    assert again.training.losses == whole.training.losses
    assert (again.own_before, again.own_after) == (whole.own_before, whole.own_after)
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_killed_step_begins_its_round_again(tiny_mixtral, tiny_model, prompts, tmp_path):
    student, scratch = tiny_model("mixtral", seed=3), tmp_path / "scratch"
    trained(student, tiny_mixtral, prompts, tmp_path / "whole", section())
    with interrupted_in(4):  # the second of its round
        trained(student, tiny_mixtral, prompts, tmp_path / "cut", section(), scratch=scratch)
    trained(student, tiny_mixtral, prompts, tmp_path / "again", section(), scratch=scratch)
    one, other = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_the_teacher_may_be_a_function(tiny_mixtral, tiny_model, prompts, tmp_path):
    """One that wants a single token teaches the student to write it."""
    asked = []

    def teacher(sequences):
        asked.extend(sequences)
        return [
            TopTargets(
                torch.full((s.positions, 1), 77),
                torch.full((s.positions, 1), -0.01),
                torch.full((s.positions,), float(np.log1p(-np.exp(-0.01)))),
            )
            for s in sequences
        ]

    out, params = tmp_path / "out", section(steps=20, learning_rate=1e-2, top_k=1)
    trained(tiny_model("mixtral", seed=3), teacher, prompts, out, params)
    assert all(s.positions <= 12 for s in asked)
    with open_model(out) as opened:
        logits = opened.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    assert logits[0, -1].argmax() == 77


def test_only_answers_count():
    sequence = answered(Prompt((4, 5, 6), "a", False), [7, 8])
    assert sequence.tokens.tolist() == [4, 5, 6, 7, 8]
    assert sequence.counted.tolist() == [False, False, True, True, False]


def test_a_local_teacher_says_what_the_model_says(tiny_mixtral, tiny_model, prompts):
    text = [answered(p, [9, 8, 7, 6][: 1 + i % 4]) for i, p in enumerate(prompts)]
    student = tiny_model("mixtral", seed=3)
    with (
        open_student(student, BASE, None, "cpu", Silent()) as found,
        open_model(tiny_mixtral, load=False) as teacher,
    ):
        scored = local_teacher(teacher, found, 16)(text)
        vocabulary = found.vocab_size
    with open_model(tiny_mixtral) as teacher:
        expected = remember(teacher.model, text, Silent())
    for number, (sequence, targets) in enumerate(zip(text, scored, strict=True)):
        assert len(targets) == sequence.positions
        whole = expected.targets(number)
        dense = torch.zeros(len(whole), expected.vocab_size).scatter(-1, whole.ids, whole.logprobs)
        dense = dense[:, :vocabulary].log_softmax(-1)
        torch.testing.assert_close(dense.gather(-1, targets.ids), targets.logprobs)


def test_a_teacher_of_other_tokens_is_refused(tiny_mixtral, tiny_model, prompts, tmp_path):
    teacher = tiny_model("llama", vocab_size=256)
    with pytest.raises(BadInputError, match=r"the student's has|the tokenizer is not"):
        trained(tiny_mixtral, teacher, prompts, tmp_path / "out", section())


def test_prompts_without_room_for_an_answer_are_left_out(
    tiny_mixtral, tiny_model, prompts, tmp_path
):
    """Of the context that is shorter, the student's or the teacher's."""
    short = tiny_model("mixtral", max_position_embeddings=32)
    for name, student, teacher in (("one", short, tiny_mixtral), ("other", tiny_mixtral, short)):
        whole = [*prompts, Prompt(tuple(range(3, 24)), "a", False), Prompt((5,) * 20, "a", False)]
        report = trained(student, teacher, whole, tmp_path / name, section(steps=1))
        assert report.left_out == 1  # 21 tokens and an answer of 12


def test_too_long_an_answer_names_what_makes_it_shorter(tiny_model, prompts, tmp_path, monkeypatch):
    short = tiny_model("mixtral", max_position_embeddings=32)
    monkeypatch.setattr(module, "open_student", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(BadInputError, match="lower new_tokens, or prompt_tokens"):
        trained(short, short, prompts, tmp_path / "out", section(new_tokens=40))


def test_processes_that_split_the_student_are_refused_before_work(
    tiny_mixtral, prompts, tmp_path, monkeypatch
):
    split = module.Processes(0, 2, sharded=True)
    monkeypatch.setattr(module.Processes, "start", lambda _: split)
    monkeypatch.setattr(module, "open_model", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(BadInputError, match=r"FSDP, but in on-policy .* choose plain"):
        trained(tiny_mixtral, tiny_mixtral, prompts, tmp_path / "out", section())


def test_the_sizes_of_a_nested_student_take_turns(tiny_model, prompts, tmp_path, monkeypatch):
    from edgekit.checkpoint import Checkpoint
    from edgekit.distill.prune import write_pruned
    from edgekit.nested import NESTED

    teacher = tiny_model("mixtral", num_local_experts=8, num_experts=8)
    student = tmp_path / "student"
    student.mkdir()
    with Checkpoint(teacher) as checkpoint:
        order = {0: [2, 4, 3, 6, 5, 0], 1: [6, 2, 7, 4, 5, 1]}
        write_pruned(checkpoint, order, student, Silent(), {NESTED: [6, 4]})
    sizes, original = [], module._Writer.write

    def noting(self, questions):
        allowed = [b.allowed.sum().item() for b in self._student.opened.mixtures.values()
                   if b.allowed is not None]  # fmt: skip
        sizes.append(allowed[0] if allowed else 6)
        return original(self, questions)

    monkeypatch.setattr(module._Writer, "write", noting)
    trained(student, teacher, prompts, tmp_path / "out", section(steps=6, round_steps=2))
    assert sizes == [6, 6, 4, 6, 6]  # measured, three rounds, measured


def test_rounds_ask_every_prompt_once_before_any_twice(prompts):
    stream = rounds(prompts, 12, 100, seed=1)
    asked = [pair for _, questions in zip(range(12), stream, strict=False) for pair in questions]
    chosen = {prompt for prompt in prompts if not prompt.held_out}
    first = [prompt for epoch, prompt in asked if epoch == 0]
    assert set(first) == chosen and len(first) == len(chosen)
    again = [q for _, q in zip(range(12), rounds(prompts, 12, 100, seed=1), strict=False)]
    assert [pair for questions in again for pair in questions] == asked
    for questions in again:
        assert 100 <= sum(len(p.tokens) + 12 for _, p in questions) < 100 + 9 + 12
    assert asked != [p for q in zip(range(12), rounds(prompts, 12, 100, seed=2)) for p in q[1]]


def test_prompts_are_edgekits_without_files(tiny_mixtral):
    tokenizer = ChatTokenizer(tiny_mixtral)
    found = read_prompts(tokenizer, section(), DataSection(domains=("chat", "prose")))
    assert {p.domain for p in found} == {"chat", "prose"}
    assert {p.held_out for p in found} == {True, False}
    assert tuple(tokenizer.encode(load_prompts()["prose"][0])) in {p.tokens for p in found}


def test_prompts_are_what_precedes_an_answer(tiny_mixtral, tmp_path):
    tokenizer = ChatTokenizer(tiny_mixtral)
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    rows = [{"messages": talk}, {"messages": talk[1:2]}, {"messages": talk}]
    rows.append({"text": "The quick brown fox jumps over the lazy dog."})
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(held_out_tokens=0)
    found = read_prompts(tokenizer, section(prompts=(str(file),), prompt_tokens=4), data)
    expected = [tokenizer.encode_chat(talk[:3]), tokenizer.encode(rows[3]["text"])[:4]]
    assert [list(p.tokens) for p in found] == expected
    assert {p.domain for p in found} == {"mine"}
    domains = {"support": {"files": (str(file),)}}
    own = read_prompts(tokenizer, section(), DataSection(domains=domains, held_out_tokens=0))
    assert {p.domain for p in own} == {"support"}


@pytest.mark.parametrize("kind", ["messages", "text"])
def test_no_prompt_is_both_held_out_and_trained_on(tiny_mixtral, tmp_path, kind):
    """Several answers to a question are documents of both splits, and one prompt."""

    def row(question, answer):
        if kind == "text":
            return {"text": f"{question} The quick brown fox jumps over {answer} lazy dogs."}
        asked = {"role": "user", "content": f"What is {question} and two?"}
        return {"messages": [asked, {"role": "assistant", "content": f"It is {answer}."}]}

    file = tmp_path / "mine.jsonl"
    rows = [row(question, answer) for answer in range(4) for question in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = section(prompts=(str(file),), prompt_tokens=6)
    found = read_prompts(ChatTokenizer(tiny_mixtral), params, DataSection())
    assert len({p.tokens for p in found}) == len(found) == 30
    assert 0 < sum(p.held_out for p in found) < 15  # a fifth, more or less


def test_prompts_that_are_all_held_out_are_refused(tiny_mixtral, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "system", "content": "x"}]}) + "\n")
    with pytest.raises(BadInputError, match="none to train on"):
        read_prompts(ChatTokenizer(tiny_mixtral), section(prompts=(str(file),)), DataSection())


def test_the_stage_takes_the_rest_from_the_recipe():
    base = BASE.model_copy(update={"cross_entropy": 0.3, "evaluate_every": 5, "temperature": 2.0})
    stage = stage_section(base, section(loss="jsd", beta=0.3))
    assert (stage.loss, stage.beta, stage.steps, stage.batch_tokens) == ("jsd", 0.3, 8, 160)
    assert (stage.cross_entropy, stage.evaluate_every, stage.temperature) == (0.0, 0, 1.0)
    assert stage.trainable == ("all",)


def captured(teacher, directory, options):
    rng = np.random.default_rng(2)
    made = [TokenSequence(rng.integers(3, 40, 16).astype(np.int32), "c", i > 3) for i in range(10)]
    write_sequences(directory / FILE_NAME, made)
    (directory / "cache").mkdir()
    capture(teacher, directory, options, directory / "cache", Silent())
    return directory / "cache"


@pytest.mark.parametrize("targets", ["top_k", "sampled"])
def test_a_sequence_of_the_cache_is_measured_before_and_after(
    tiny_mixtral, tiny_model, prompts, tmp_path, targets
):
    """Whatever is kept of the training text, which says nothing here."""
    cache = captured(tiny_mixtral, tmp_path, CaptureOptions(targets, temperature=2.0))
    report = trained(
        tiny_model("mixtral", seed=3), tiny_mixtral, prompts, tmp_path / "out", section(steps=3),
        cache=cache,
    )  # fmt: skip
    (healed,) = report.training.students
    assert healed.before.all.value == report.training.held_out_kl_before > 0
    assert healed.after.all.value != healed.before.all.value


def test_a_cache_of_other_tokens_is_refused_before_work(
    tiny_mixtral, tiny_model, prompts, tmp_path, monkeypatch
):
    cache, student = captured(tiny_mixtral, tmp_path, CaptureOptions()), tmp_path / "student"
    monkeypatch.setattr(module, "open_student", lambda *_, **__: pytest.fail("it was opened"))
    shutil.copytree(tiny_model("mixtral", seed=3), student)
    (student / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(BadInputError, match="the chat templates differ"):
        trained(student, lambda _: [], prompts, tmp_path / "out", section(), cache=cache)


def test_memory_is_asked_for_student_and_teacher_together(
    tiny_mixtral, tiny_model, prompts, tmp_path, monkeypatch
):
    import edgekit.distill.stage as stage
    from edgekit.distill.pass_memory import weight_needs
    from edgekit.errors import OutOfResourcesError

    student, own = tiny_model("mixtral", seed=3), {}

    def refuse(needs, *_):
        own[name] = needs.fixed
        raise OutOfResourcesError("too small")

    monkeypatch.setattr(stage, "require_training_memory", refuse)
    for name, teacher in (("teacher", tiny_mixtral), ("function", lambda _: [])):
        with pytest.raises(OutOfResourcesError):
            trained(student, teacher, prompts, tmp_path / name, section())
    with open_model(tiny_mixtral, load=False) as opened:
        assert own["teacher"] - own["function"] == weight_needs(opened).whole


def test_adapters_write_and_learn_and_are_merged(tiny_mixtral, tiny_model, prompts, tmp_path):
    base = BASE.model_copy(update={"lora_rank": 8, "trainable": ("attention", "experts")})
    student, out, more = tiny_model("mixtral", seed=3), tmp_path / "out", tmp_path / "more"
    out.mkdir(), more.mkdir()
    params = section(steps=12, learning_rate=2e-2, top_k=512)
    report = on_policy(student, tiny_mixtral, prompts, params, base, out, Silent())
    assert report.own_after.all.value < 0.95 * report.own_before.all.value
    again = on_policy(out, tiny_mixtral, prompts, section(steps=1, top_k=512), BASE, more, Silent())
    assert again.own_before.all.value == pytest.approx(report.own_after.all.value, rel=0.02)
