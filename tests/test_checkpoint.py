"""Damaged, absurd and hostile checkpoints are refused in one sentence; good ones are read."""

import json
import os
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgekit.checkpoint import Checkpoint, write_checkpoint
from edgekit.cli.main import main
from edgekit.errors import BadInputError

ROUTER = "model.layers.0.block_sparse_moe.gate.weight"
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_mixtral, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny_mixtral, tmp_path / "model")


def config(model, **changes):
    path = model / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def tensors(model, change):
    values = load_file(model / WEIGHTS)
    change(values)
    save_file(values, model / WEIGHTS, {"format": "pt"})


def header(model, change):
    """Rewrite the safetensors header, keeping the data."""
    raw = (model / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    values = json.loads(raw[8 : 8 + length])
    change(values)
    text = json.dumps(values).encode()
    (model / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def offsets(model, change):
    def apply(values):
        entry = values[ROUTER]
        entry["data_offsets"] = change(*entry["data_offsets"])

    header(model, apply)


def prefix(model, value):
    raw = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(struct.pack("<Q", value) + raw[8:])


def shard(model, weight_map):
    (model / WEIGHTS).rename(model / "part-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def grow(model):
    with (model / WEIGHTS).open("ab") as file:
        file.write(b"stray")


def pickled(model):
    (model / WEIGHTS).unlink()
    torch.save({}, model / "pytorch_model.bin")


DAMAGE = {
    # config.json
    "no config": (lambda m: (m / "config.json").unlink(), r"config\.json is missing"),
    "config is not JSON": (lambda m: (m / "config.json").write_text("{"), "not valid JSON"),
    "config is deeply nested": (
        lambda m: (m / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), "not a JSON object"),
    "unknown family": (lambda m: config(m, model_type="gpt9"), "'gpt9' is not known"),
    "no family": (lambda m: config(m, model_type=None), "None is not known"),
    "family is a number": (lambda m: config(m, model_type=7), "7 is not known"),
    "remote code": (
        lambda m: config(m, model_type="evil", auto_map={"AutoModel": "x.Y"}), "never runs"),
    "no layers": (lambda m: config(m, num_hidden_layers=0), "num_hidden_layers is 0"),
    "a million layers": (lambda m: config(m, num_hidden_layers=10**6), "num_hidden_layers"),
    "negative heads": (lambda m: config(m, num_attention_heads=-4), "num_attention_heads is -4"),
    "huge width": (lambda m: config(m, hidden_size=10**18), "hidden_size is 10{18}"),
    "text for a number": (lambda m: config(m, hidden_size="64"), "hidden_size is '64'"),
    "true for a number": (lambda m: config(m, vocab_size=True), "vocab_size is True"),
    "a missing number": (lambda m: config(m, vocab_size=None), "vocab_size is missing"),
    "epsilon is NaN": (lambda m: config(m, rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "epsilon is beyond floats": (
        lambda m: config(m, rms_norm_eps=10**400), r"rms_norm_eps is 10+\.\.\.0+, expected"),
    "epsilon is negative": (lambda m: config(m, rms_norm_eps=-1.0), "rms_norm_eps is -1"),
    "KV heads do not divide": (lambda m: config(m, num_key_value_heads=3), "3 does not divide 4"),
    "huge head": (lambda m: config(m, head_dim=2**31 - 2), "head_dim is 2147483646, expected at m"),
    "huge head by division": (
        lambda m: config(m, hidden_size=2**31, num_attention_heads=1, num_key_value_heads=1,
                         head_dim=None), "head_dim is 2147483648, expected at most 4096"),
    "odd head": (lambda m: config(m, head_dim=31), "head_dim 31 is odd"),
    "experts beyond memory": (
        lambda m: config(m, num_hidden_layers=1000, num_local_experts=65_536),
        "num_local_experts is 65536: over 1000 layers"),
    "top-k above the experts": (
        lambda m: config(m, num_experts_per_tok=9), "9 is more than the 4 experts"),
    "another activation": (lambda m: config(m, hidden_act="tanh"), "'tanh' is not supported"),
    "absurd rotary base": (
        lambda m: config(m, rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        "rope_theta"),
    "rotary base beyond floats": (
        lambda m: config(m, rope_parameters={"rope_type": "default", "rope_theta": 10**400}),
        "rope_theta is 10+"),
    "unknown rotary scaling": (
        lambda m: config(m, rope_parameters={"rope_type": "warp", "rope_theta": 1e4}), "warp"),
    # the weights file
    "empty file": (lambda m: (m / WEIGHTS).write_bytes(b""), "not a whole safetensors file"),
    "truncated header": (lambda m: os.truncate(m / WEIGHTS, 100), "not a whole safetensors file"),
    "oversized header": (lambda m: prefix(m, 1 << 62), "not a whole safetensors file"),
    "header is not JSON": (lambda m: prefix(m, 20), "header is not JSON"),
    "truncated data": (
        lambda m: os.truncate(m / WEIGHTS, (m / WEIGHTS).stat().st_size - 4), "truncated"),
    "stray bytes": (grow, "stray bytes"),
    "overlap": (lambda m: offsets(m, lambda a, b: [a - 64, b - 64]), "overlaps|leaves a gap"),
    "span and shape differ": (lambda m: offsets(m, lambda a, b: [a, b - 4]), "data_offsets span"),
    "negative offset": (lambda m: offsets(m, lambda a, b: [-8, b]), "malformed"),
    "offset is text": (lambda m: offsets(m, lambda a, b: ["0", b]), "malformed"),
    "entry without shape": (lambda m: header(m, lambda h: h[ROUTER].pop("shape")), "lacks"),
    "entry is a list": (lambda m: header(m, lambda h: h.update({ROUTER: []})), "lacks"),
    "offsets are a number": (
        lambda m: header(m, lambda h: h[ROUTER].update(data_offsets=7)), "malformed"),
    "negative shape": (lambda m: header(m, lambda h: h[ROUTER].update(shape=[-4, -64])), "malform"),
    "dtype is a list": (
        lambda m: header(m, lambda h: h[ROUTER].update(dtype=["F32"])), "not a string"),
    "unknown dtype": (lambda m: header(m, lambda h: h[ROUTER].update(dtype="Q7")), "'Q7'"),
    "a tensor of no layer": (
        lambda m: tensors(m, lambda t: t.update({"model.layers.2.x": np.zeros(1, np.float32)})),
        "'model.layers.2.x' is not a tensor of a mixtral"),
    "a missing tensor": (lambda m: tensors(m, lambda t: t.pop(ROUTER)), f"{ROUTER}' is missing"),
    "a shape against the config": (
        lambda m: tensors(m, lambda t: t.update({ROUTER: np.zeros((4, 32), np.float32)})),
        r"has shape \[4, 32\] but config.json implies \[4, 64\]"),
    # the directory
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "weights are missing"),
    "pickles only": (pickled, r"pytorch_model\.bin: pickle weights can run code"),
    "index names an absent shard": (lambda m: shard(m, {"x": "part-2.safetensors"}), "not there"),
    "index leaves the directory": (
        lambda m: shard(m, {"x": "../part-1.safetensors"}), "not a plain file name"),
    "index without a map": (lambda m: shard(m, {}), "no weight_map"),
    "index names a tensor elsewhere": (
        lambda m: (shutil.copy(m / WEIGHTS, m / "part-2.safetensors"),
                   tensors(m, lambda t: t.pop(ROUTER)),
                   shard(m, {ROUTER: "part-1.safetensors", "y": "part-2.safetensors"})),
        "is not in part-1"),
    "quantized already": (
        lambda m: config(m, quantization_config={"edgekit_scheme": "int8"}), "quantized already"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(model, tmp_path, capsys, kind):
    damage, sentence = DAMAGE[kind]
    damage(model)
    out = tmp_path / "out"
    assert main(["quantize", str(model), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error), error
    assert "; " in error  # what is wrong; what to do
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_biases_that_edgekit_would_drop_are_refused(tiny_model, tmp_path):
    """A config that denies the biases of its weights would make the student another model."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama", mlp_bias=True), directory)
    config(directory, mlp_bias=False)
    with pytest.raises(BadInputError, match=r"mlp\.\w+_proj\.bias' is not a tensor of a llama"):
        Checkpoint(directory)


def test_a_stored_tied_head_and_rotary_frequencies_are_no_reason_to_refuse(model):
    def add(values):
        values["lm_head.weight"] = values["model.embed_tokens.weight"].copy()
        values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)

    tensors(model, add)
    with Checkpoint(model) as checkpoint:
        assert "lm_head.weight" not in {spec.name for spec in checkpoint.specs}


def test_float8_weights_are_refused_by_name(model):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    values = load_torch(model / WEIGHTS)
    values[ROUTER] = values[ROUTER].to(torch.float8_e4m3fn)
    save_torch(values, model / WEIGHTS)
    with pytest.raises(BadInputError, match="quantized \\(float8 or packed\\) but"):
        Checkpoint(model)


def test_a_directory_that_is_none(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for name in ("absent", "file"):
        assert main(["inspect", str(tmp_path / name)]) == 2
        assert "no such directory" in capsys.readouterr().err


def test_inspect_needs_no_weights_but_does_not_hide_pickles(model, capsys):
    (model / WEIGHTS).unlink()
    assert main(["inspect", str(model)]) == 0
    assert "no weights here" in capsys.readouterr().out
    torch.save({}, model / "pytorch_model.bin")
    assert main(["inspect", str(model)]) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_is_read_as_torch_reads_it(tiny_llama, tmp_path, dtype):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    values = {k: v.to(dtype) for k, v in load_torch(tiny_llama / WEIGHTS).items()}
    save_torch(values, tmp_path / WEIGHTS)
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        for name, value in values.items():
            np.testing.assert_array_equal(checkpoint.float32(name), value.float().numpy())


def test_shards_are_read_as_one_checkpoint(tiny_mixtral, tmp_path):
    values = load_file(tiny_mixtral / WEIGHTS)
    names = sorted(values)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({n: values[n] for n in members}, tmp_path / file)
    index = {"weight_map": {n: file for file, members in parts.items() for n in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(tiny_mixtral / "config.json", tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        for name in names:
            np.testing.assert_array_equal(checkpoint.float32(name), values[name])


def test_a_written_checkpoint_rounds_as_torch_does_and_keeps_norms(tiny_mixtral, tmp_path):
    from safetensors.torch import load_file as load_torch

    with Checkpoint(tiny_mixtral) as source:
        write_checkpoint(tmp_path, source.config, lambda s: source.float32(s.name), "BF16")
        written = load_torch(tmp_path / WEIGHTS)
        for spec in source.specs:
            value = torch.from_numpy(source.float32(spec.name).copy())
            expected = value if spec.role == "norm" else value.bfloat16()
            assert torch.equal(written[spec.name], expected), spec.name
