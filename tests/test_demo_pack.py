"""The pack of a first start."""

import pytest

from edgekit import demo_pack
from edgekit.errors import BadInputError
from edgekit.pack import open_pack, verify_pack
from edgekit.progress import Silent
from edgekit.runtimes.engine import Message, Sampling, load_engine


def test_the_demo_pack_verifies_and_answers_as_the_model_it_was_made_of(
    tiny_llama, quantized, variant, tmp_path, monkeypatch
):
    monkeypatch.setattr(demo_pack, "demo_model", lambda _: (tiny_llama, "package:tiny"))
    manifest = demo_pack.make_demo_pack(tmp_path / "pack", Silent())
    assert verify_pack(tmp_path / "pack", Silent()) == manifest
    measured = {t.target for t in manifest.variants[0].targets if t.speed}
    assert "openvino-cpu" in measured
    assert not any(t.quality for t in manifest.variants[0].targets)  # none was measured
    question = [Message(role="user", content="What is the capital of France?")]
    greedy = Sampling(temperature=0, repetition_penalty=1, max_tokens=8)
    directory = open_pack(tmp_path / "pack", "openvino-cpu", Silent())
    answers = [
        [e.token for e in load_engine(d, "openvino-cpu").generate(question, greedy)]
        for d in (directory, variant("llama", "int8"))
    ]
    assert answers[0] == answers[1]
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]  # no scratch is left


def test_a_failure_leaves_nothing(tiny_llama, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise BadInputError("no")

    monkeypatch.setattr(demo_pack, "demo_model", lambda _: (tiny_llama, "package:tiny"))
    monkeypatch.setattr(demo_pack, "compile_variant", refuse)
    with pytest.raises(BadInputError):
        demo_pack.make_demo_pack(tmp_path / "pack", Silent())
    assert list(tmp_path.iterdir()) == []
