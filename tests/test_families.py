"""Families: what the table says, what is refused, and checkpoints of unknown families."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_families import FAMILY_OPTIONS

from edgekit.checkpoint import Checkpoint
from edgekit.cli.main import main
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.family_listing import family_lines, refused_families
from edgekit.family_table import FAMILIES, REFUSED
from edgekit.parity import check_parity
from edgekit.progress import Silent
from edgekit.resemblance import resembling
from edgekit.runtimes.compile import compile_variant
from edgekit.tensorfile import read_header


def test_the_printed_table_has_every_family_and_fits_the_screen(capsys):
    assert main(["inspect", "--families"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    for name in [*FAMILIES, *REFUSED]:
        assert re.search(rf"\b{name}\b", printed), name


def test_the_table_counts_what_was_promised(capsys):
    assert main(["inspect", "--families", "--json"]) == 0
    families = json.loads(capsys.readouterr().out)["families"]
    assert sum(f["sparse"] for f in families) >= 20
    assert sum(not f["sparse"] for f in families) >= 15
    assert {f["family"] for f in families} == {line.family for line in family_lines()}


@pytest.mark.parametrize("family", sorted(refused_families()))
def test_plan_refuses_what_no_graph_expresses_before_any_work(family, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert main(["plan", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert family in error and "cannot be compiled" in error


def renamed(source, tmp_path, **changes):
    """A copy of a checkpoint whose ``model_type`` nobody knows."""
    directory = tmp_path / "unknown"
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps({**config, "model_type": "brand_new", **changes})
    )
    return directory


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "olmo2", "gpt_oss"])
def test_an_unknown_family_is_refused_with_what_it_resembles(tiny_model, tmp_path, capsys, family):
    directory = renamed(tiny_model(family), tmp_path)
    for verb in (["inspect"], ["quantize", "--out", str(tmp_path / "out")]):
        assert main([verb[0], str(directory), *verb[1:]]) == 2
        error = capsys.readouterr().err
        assert "'brand_new' is not known" in error and "say --as" in error
        assert family in error
    assert not (tmp_path / "out").exists()


def test_code_of_an_unknown_family_is_named_and_not_run(tiny_model, tmp_path):
    directory = renamed(tiny_model("qwen3"), tmp_path, auto_map={"AutoModel": "modeling.Evil"})
    (directory / "modeling.py").write_text("raise SystemExit('executed')")
    with pytest.raises(BadInputError, match="never runs; its tensors are those of qwen3"):
        Checkpoint(directory)


def test_tensors_of_no_family_resemble_none(tiny_model, tmp_path):
    directory = renamed(tiny_model("llama"), tmp_path)
    values = load_file(directory / "model.safetensors")
    values["model.layers.0.surprise.weight"] = np.ones(3, np.float32)
    save_file(values, directory / "model.safetensors")
    with pytest.raises(BadInputError, match="those of no known family"):
        Checkpoint(directory)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_tensors_that_repeat_others_hide_no_resemblance(tiny_model, name):
    directory = tiny_model("llama", tie_word_embeddings=True)
    config = json.loads((directory / "config.json").read_text())
    tensors, _ = read_header(directory / "model.safetensors")
    shapes = {stored: info.shape for stored, info in tensors.items()}
    shapes[name] = shapes["model.embed_tokens.weight"] if "head" in name else (8,)
    assert "llama" in resembling(config, shapes)


@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_every_family_resembles_itself(tiny_model, family):
    directory = tiny_model(family)
    config = json.loads((directory / "config.json").read_text())
    tensors, _ = read_header(directory / "model.safetensors")
    assert family in resembling(config, {name: info.shape for name, info in tensors.items()})


def test_as_reads_it_as_that_family_under_the_gate(tiny_model, tmp_path, capsys):
    directory = renamed(tiny_model("qwen3_moe"), tmp_path)
    packed, variant = tmp_path / "packed", tmp_path / "variant"
    arguments = ["--as", "qwen3_moe", "--scheme", "int4-g32", "--out", str(packed)]
    assert main(["quantize", str(directory), *arguments]) == 0
    variant.mkdir()
    compile_variant(packed, ["openvino-cpu"], variant, Silent())
    report, _ = check_parity(variant, ["openvino-cpu"], Silent())
    assert [r.target for r in report.results] == ["openvino-cpu"]
    report.require()
    assert describe(json.loads((variant / "config.json").read_text())).model_type == "qwen3_moe"


def test_as_a_family_that_does_not_fit_or_does_not_exist(tiny_model, tmp_path, capsys):
    directory = renamed(tiny_model("qwen3_moe"), tmp_path)
    for family, sentence in (("gemma2", "missing"), ("nonsense", "which is no family")):
        assert main(["inspect", str(directory), "--as", family]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("phi", {"qk_layernorm": True}),
        ("stablelm", {"qk_layernorm": True}),
        ("cohere", {"use_qk_norm": True}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("minimax_m2", {"use_qk_norm": False}),
        ("dbrx", {"ffn_config": {"moe_normalize_expert_weights": 2.0}}),
    ],
)
def test_an_option_that_no_graph_computes_is_refused(tiny_model, family, option):
    config = json.loads((tiny_model(family) / "config.json").read_text())
    name = next(iter(option.values()))
    leaf = next(iter(name)) if isinstance(name, dict) else next(iter(option))
    merged = {k: {**config[k], **v} if isinstance(v, dict) else v for k, v in option.items()}
    with pytest.raises(BadInputError, match=f"{leaf} is .*only .* is supported"):
        describe({**config, **merged})


def test_published_dbrx_says_its_rotary_base_inside_attn_config(tiny_model):
    config = json.loads((tiny_model("dbrx") / "config.json").read_text())
    del config["rope_parameters"]
    config["attn_config"]["rope_theta"] = 500_000
    rope = describe(config).layers[0].attention.rope
    assert rope.inv_freq[1] == pytest.approx(500_000 ** (-2 / rope.dimensions))
