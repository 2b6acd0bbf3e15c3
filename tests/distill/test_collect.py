"""The calibration pass: streamed as well as whole, resumed, shared, and bounded."""

import errno

import numpy as np
import pytest

from edgekit.distill import collect as module
from edgekit.distill import streamed
from edgekit.distill.collect import PassOptions, Share, checkpoint_digest, collect
from edgekit.distill.open_model import open_model
from edgekit.distill.pass_memory import pass_needs
from edgekit.distill.statistics import ARRAYS, require_whole
from edgekit.errors import BadInputError, OutOfResourcesError
from edgekit.progress import Silent
from edgekit.sequences import TokenSequence
from edgekit.tensorfile import TensorFileWriter, TensorInfo, read_header

STREAMED, WHOLE = PassOptions(mode="streamed"), PassOptions(mode="whole")
FAMILIES = ["mixtral", "deepseek_v3", "gpt_oss", "longcat_flash", "gemma4_text", "llama4_text",
            "qwen3_next", "dbrx"]  # fmt: skip


def text(count=8):
    """Two domains; lengths differ, so chunks have several batches."""
    rng = np.random.default_rng(1)
    return [
        TokenSequence(rng.integers(3, 500, 20 + i // 3).astype(np.int32), "ab"[i % 2], False)
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A chunk per sequence."""
    monkeypatch.setattr(module, "CHUNK_TOKENS", 1)


def same(one, two):
    assert one.info == two.info
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_pass_measures_what_one_in_memory_does(tiny_model, tmp_path, family):
    model = tiny_model(family)
    whole = collect(model, text(), tmp_path / "whole", Silent(), options=WHOLE)
    found = collect(model, text(), tmp_path / "streamed", Silent(), options=STREAMED)
    assert found.info == whole.info
    for name in ARRAYS:
        one, two = getattr(found, name), getattr(whole, name)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7, err_msg=name)
    assert [p.name for p in (tmp_path / "streamed").iterdir() if p.is_dir()] == []


def test_chunks_are_neither_small_nor_many():
    def sizes(count, length):
        made = [TokenSequence(np.zeros(length, np.int32), "a", False) for _ in range(count)]
        bounds = module.chunk_bounds(made)
        assert [b for b, _ in bounds] + [count] == [0] + [e for _, e in bounds]
        return [end - begin for begin, end in bounds]

    assert sizes(4, 100) == [1, 1, 1, 1]
    module.CHUNK_TOKENS = 250
    assert sizes(4, 100) == [3, 1]
    assert sizes(100, 100) == [4] * 25
    assert sizes(4, 300) == [1] * 4


@pytest.mark.parametrize("layer", [0, 1])
def test_a_streamed_pass_that_was_killed_goes_on_in_its_layer(
    tiny_mixtral, tmp_path, monkeypatch, layer
):
    expected = collect(tiny_mixtral, text(), tmp_path / "one", Silent(), options=STREAMED)
    original, calls = streamed._run_chunk, []

    def killed(layerwise, number, text, chunk, states, task):
        calls.append((number, chunk))
        if (number, chunk) == (layer, 5) and calls.count((layer, 5)) == 1:
            raise KeyboardInterrupt
        return original(layerwise, number, text, chunk, states, task)

    monkeypatch.setattr(streamed, "_run_chunk", killed)
    scratch = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_mixtral, text(), scratch, Silent(), options=STREAMED)
    same(collect(tiny_mixtral, text(), scratch, Silent(), options=STREAMED), expected)
    assert all(calls.count(call) == 1 for call in calls if call != (layer, 5))
    assert len(set(calls)) == 16


def test_a_pass_that_was_killed_while_it_put_the_layers_together_runs_no_layer_again(
    tiny_mixtral, tmp_path, monkeypatch
):
    original, wanted = streamed._put_together, []

    def killed(opened, digest, text, chunk, directory, file):
        wanted.append(chunk)
        if wanted == [0, 1, 2]:
            raise KeyboardInterrupt
        original(opened, digest, text, chunk, directory, file)

    monkeypatch.setattr(streamed, "_put_together", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_mixtral, text(), tmp_path / "a", Silent(), options=STREAMED)
    monkeypatch.setattr(streamed, "_run_chunk", None)
    found = collect(tiny_mixtral, text(), tmp_path / "a", Silent(), options=STREAMED)
    assert wanted == [0, 1, 2, *range(2, 8)]
    same(found, collect(tiny_mixtral, text(), tmp_path / "b", Silent(), options=WHOLE))


def test_streamed_workers_and_whole_ones_share_a_text(tiny_mixtral, tmp_path):
    expected = collect(tiny_mixtral, text(), tmp_path / "one", Silent(), options=STREAMED)
    collect(tiny_mixtral, text(), tmp_path / "two", Silent(), Share(1, 2), STREAMED)
    found = collect(tiny_mixtral, text(), tmp_path / "two", Silent(), Share(0, 2), WHOLE)
    require_whole(found, "two")
    same(found, expected)


def test_a_disk_that_is_full_stops_the_pass_with_a_sentence_and_it_goes_on_later(
    tiny_mixtral, tmp_path, monkeypatch
):
    original, calls = streamed.os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(streamed.os, "fsync", full)
    with pytest.raises(OutOfResourcesError, match="no space left"):
        collect(tiny_mixtral, text(), tmp_path / "a", Silent(), options=STREAMED)
    found = collect(tiny_mixtral, text(), tmp_path / "a", Silent(), options=STREAMED)
    same(found, collect(tiny_mixtral, text(), tmp_path / "b", Silent(), options=STREAMED))


def test_a_model_too_large_for_memory_is_streamed_and_one_layer_too_large_is_refused(
    tiny_model, tmp_path, monkeypatch
):
    model = tiny_model("mixtral", num_hidden_layers=4, intermediate_size=256)
    with open_model(model, load=False) as opened:
        needs = pass_needs(opened, module.calibration_text(text()))
    assert needs.streamed < needs.whole
    assert needs.states_disk == 2 * 4 * 64 * sum(len(s.tokens) for s in text())
    modes = []

    def run(free, scratch):
        monkeypatch.setattr(module, "free_memory", lambda _: free)
        monkeypatch.setattr("edgekit.memory.available_memory", lambda: free)
        collect(model, text(), tmp_path / scratch, Silent(),
                report=lambda r: modes.append((r.mode, r.expected_memory)))  # fmt: skip

    run(2 * needs.whole, "roomy")
    run((needs.whole + needs.streamed) // 2, "narrow")
    assert modes == [("whole", needs.whole), ("streamed", needs.streamed)]
    with pytest.raises(OutOfResourcesError, match="measuring the experts of the streamed model"):
        run(needs.streamed - 1, "none")


def test_a_disk_too_small_for_the_states_is_refused_before_anything_runs(
    tiny_mixtral, tmp_path, monkeypatch
):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutOfResourcesError, match="GB of disk"):
        collect(tiny_mixtral, text(), tmp_path, Silent(), options=STREAMED)


@pytest.mark.parametrize("options", [WHOLE, STREAMED])
@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        ("model.layers.1.block_sparse_moe.experts.2.w1.weight", "expert 2 of layer 1 gives"),
        ("model.layers.1.block_sparse_moe.gate.weight", "the router of layer 1"),
        ("model.layers.0.self_attn.q_proj.weight", "of layer 0"),
    ],
)
def test_weights_that_are_no_numbers_are_named(tiny_mixtral, tmp_path, options, tensor, named):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(tiny_mixtral / "model.safetensors")
    tensors[tensor][0, 0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((tiny_mixtral / "config.json").read_bytes())
    with pytest.raises(BadInputError, match=named):
        collect(tmp_path, text(), tmp_path / "scratch", Silent(), options=options)


def test_a_domain_without_calibration_text_is_named(tiny_mixtral, tmp_path):
    held_out = TokenSequence(np.arange(3, 9, dtype=np.int32), "law", True)
    with pytest.raises(BadInputError, match="no calibration text of the domain 'law'"):
        collect(tiny_mixtral, [*text(), held_out], tmp_path, Silent())
    empty = TokenSequence(np.zeros(0, np.int32), "a", False)
    with pytest.raises(BadInputError, match="is empty"):
        collect(tiny_mixtral, [*text(), empty], tmp_path, Silent())


def test_experts_that_no_token_reaches_are_counted(tiny_mixtral, tmp_path):
    one = [TokenSequence(np.array([7, 7, 7], np.int32), "a", False)]
    found = collect(tiny_mixtral, one, tmp_path, Silent())
    never = found.unreached()
    for row, layer in enumerate(found.layers):
        reached = np.flatnonzero(found.total("tokens")[row])
        assert sorted([*reached, *never.get(layer, [])]) == [0, 1, 2, 3]
    assert found.total("output_max").min() == 0


def test_a_pass_in_bfloat16_is_close_and_kept_apart(tiny_mixtral, tmp_path):
    exact = collect(tiny_mixtral, text(), tmp_path, Silent())
    rough = collect(tiny_mixtral, text(), tmp_path, Silent(), options=PassOptions("bfloat16"))
    ratio = rough.total("gated_sum").sum() / exact.total("gated_sum").sum()
    assert ratio != 1
    assert abs(ratio - 1) < 0.05


def test_the_digest_of_a_checkpoint_sees_config_shapes_and_bytes(
    tiny_mixtral, tiny_model, tmp_path
):
    digest = checkpoint_digest(tiny_mixtral)
    assert checkpoint_digest(tiny_model("mixtral", seed=9)) != digest
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_mixtral / name).read_bytes())
    assert checkpoint_digest(tmp_path) == digest
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06')
    )
    assert checkpoint_digest(tmp_path) != digest


@pytest.mark.parametrize(
    ("part", "place"),
    [
        ("layers.0.block_sparse_moe.gate.weight", 0.5),
        ("layers.1.block_sparse_moe.gate.weight", 0.9),
        ("layers.1.block_sparse_moe.experts.2.w1.weight", 0.5),
        ("layers.0.self_attn.q_proj.weight", 0.2),
        ("norm.weight", 0.99),
    ],
)
def test_a_byte_of_a_router_or_amid_an_expert_is_another_checkpoint(
    tiny_mixtral, tmp_path, part, place
):
    """Healing a router leaves the size of its file and what lies at its ends as they were."""
    (tmp_path / "config.json").write_bytes((tiny_mixtral / "config.json").read_bytes())
    source, file = tiny_mixtral / "model.safetensors", tmp_path / "model.safetensors"
    content = bytearray(source.read_bytes())
    tensors, _ = read_header(source)
    info = tensors[f"model.{part}"]
    content[info.offset + int(place * info.nbytes)] ^= 1
    file.write_bytes(content)
    assert checkpoint_digest(tmp_path) != checkpoint_digest(tiny_mixtral)


def test_little_of_the_experts_is_read_for_a_digest(tmp_path):
    """All of a router, and some of every 4 MiB of an expert."""
    layout = [
        TensorInfo("model.layers.0.mlp.gate.weight", "BF16", (128, 2048)),
        TensorInfo("model.layers.0.mlp.experts.gate_up_proj", "U8", (10, 1 << 20)),
    ]
    (tmp_path / "config.json").write_text("{}")
    file = tmp_path / "model.safetensors"
    with TensorFileWriter(file, layout) as writer:
        for info in layout:
            kind = np.uint16 if info.dtype == "BF16" else np.uint8
            writer.write(info.name, np.zeros(info.shape, kind))
    tensors, _ = read_header(file)
    begin = tensors[layout[1].name].offset

    def seen(place):
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(b"\1")
            opened.flush()
            changed = checkpoint_digest(tmp_path)
            opened.seek(place)
            opened.write(b"\0")
        return changed != checkpoint_digest(tmp_path)

    assert all(seen(begin + middle) for middle in (2 << 20, 6 << 20, 9 << 20))
    assert not seen(begin + (1 << 20))


def test_sums_of_a_teacher_whose_router_was_trained_since_are_not_taken(tiny_mixtral, tmp_path):
    from safetensors.numpy import load_file, save_file

    healed, scratch = tmp_path / "healed", tmp_path / "scratch"
    healed.mkdir()
    tensors = load_file(tiny_mixtral / "model.safetensors")
    for name in [n for n in tensors if n.endswith("gate.weight")]:
        tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    save_file(tensors, healed / "model.safetensors", {"format": "pt"})
    (healed / "config.json").write_bytes((tiny_mixtral / "config.json").read_bytes())
    before = collect(tiny_mixtral, text(), scratch, Silent())
    after = collect(healed, text(), scratch, Silent())
    assert not np.array_equal(before.tokens, after.tokens)
    same(after, collect(healed, text(), tmp_path / "alone", Silent()))
