"""Recipes: strict, with errors that name file, table and key; examples that hold."""

import re
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.checkpoint import read_config
from edgekit.describe import describe
from edgekit.errors import BadInputError
from edgekit.recipe import SECTIONS, TABLES, Recipe, load_recipe, parse_recipe
from edgekit.rules import check
from edgekit.scheme import Scheme

EXAMPLES = Path(__file__).parent.parent / "examples"
MINIMAL = {"teacher": {"model": "m"}, "pack": {"name": "p"}}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_examples_load_and_survive_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(recipe.to_toml())
    assert load_recipe(copy) == recipe
    assert load_recipe(copy).digest() == recipe.digest()


def test_the_sparse_example_fits_its_targets_rules():
    recipe = load_recipe(EXAMPLES / "qwen3-30b-a3b-sparse.toml")
    architecture = describe(read_config(EXAMPLES / "qwen3-30b-a3b"))
    scheme = Scheme.parse(recipe.quantize.scheme)
    for target in recipe.targets:
        assert not [f for f in check(target.name, architecture, scheme) if f.blocks]
    assert recipe.shrink.keep * architecture.moe.num_experts >= architecture.moe.num_experts_per_tok


def test_the_npu_example_avoids_what_the_npu_refuses():
    recipe = load_recipe(EXAMPLES / "qwen3-30b-a3b-npu.toml")
    sparse = describe(read_config(EXAMPLES / "qwen3-30b-a3b"))
    scheme = Scheme.parse(recipe.quantize.scheme)
    blocked = [f.rule for f in check("openvino-npu", sparse, scheme) if f.blocks]
    assert blocked == ["npu-dense"]  # which is why the recipe names a dense student
    assert recipe.student and not recipe.shrink
    dense = describe(
        {
            "model_type": "qwen3", "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": sparse.vocab_size, "tie_word_embeddings": True,
            "max_position_embeddings": 40960, "rope_theta": 1e6,
        }
    )  # fmt: skip
    assert not [f for f in check("openvino-npu", dense, scheme) if f.blocks]


CASES = [
    ({"teacher": {"modle": "x"}}, r"\[teacher\] modle: unknown key, did you mean 'model'"),
    ({"shrnk": {}}, r"shrnk: unknown key, did you mean 'shrink'"),
    ({"shrink": {"keep": 0}}, r"\[shrink\] keep: .*greater than 0, got 0"),
    ({"shrink": {"keep": 1.5}}, r"\[shrink\] keep"),
    ({"shrink": {"keep": "half"}}, r"\[shrink\] keep.*got 'half'"),
    ({"shrink": {"keep": 0.5, "criterion": "best"}}, r"\[shrink\] criterion.*'reap'"),
    ({"distill": {"steps": -1}}, r"\[distill\] steps"),
    ({"distill": {"steps": 1.5}}, r"\[distill\] steps"),
    ({"distill": {"steps": 1, "learning_rate": float("nan")}}, r"\[distill\] learning_rate"),
    ({"quantize": {"scheme": "int3"}}, r"\[quantize\] scheme.*int4-g64"),
    ({"targets": [{"name": "openvino-tpu"}]}, r"\[targets\.0\] name"),
    ({"targets": []}, r"targets"),
    ({"targets": [{"name": "onnx-cpu"}] * 2}, "names a target twice"),
    ({"gates": {"max_kl": -1.0}}, r"\[gates\] max_kl"),
    ({"gates": {"max_kll": 1.0}}, r"max_kll: unknown key, did you mean 'max_kl'"),
    ({"pack": {"name": "../evil"}}, r"\[pack\] name"),
    ({"pack": {"name": "p", "version": "one"}}, r"\[pack\] version"),
    ({"data": {"tokens": 10**12}}, r"\[data\] tokens"),
    ({"data": {"tokens": -1}}, r"\[data\] tokens: .*greater than or equal to 0, got -1"),
    ({"data": {"held_out_tokens": -1}}, r"\[data\] held_out_tokens"),
    ({"data": {"files": ["a.txt"] * 256}}, r"\[data\] files: .*at most 255"),
    ({"data": {"domains": ["chat", "poetry"]}}, r"\[data\] domains: domain 'poetry' is none of"),
    ({"data": {"domains": {"law": {"weight": 2.0}}}}, "domain 'law' .* names no files"),
    ({"data": {"domains": {"chat": {"weight": 0.0}}}}, r"\[data\.domains\.chat\] weight"),
    (
        {"data": {"domains": {"chat": {"wieght": 1.0}}}},
        "wieght: unknown key, did you mean 'weight'",
    ),
    ({"student": {"model": "s"}, "shrink": {"keep": 0.5}}, "exclude each other"),
    ({"teacher": {}}, r"\[teacher\] model: this key is missing"),
]


@pytest.mark.parametrize(("change", "sentence"), CASES)
def test_errors_name_table_and_key(change, sentence):
    with pytest.raises(BadInputError, match=rf"^r\.toml: .*{sentence}|^r\.toml: {sentence}"):
        parse_recipe({**MINIMAL, **change}, "r.toml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[teacher", "not valid TOML"),
        (b"\xff", "not valid TOML"),
        (b"a = " + b"[" * 3000 + b"]" * 3000, "not valid TOML.*nested too deeply"),
        (b".".join([b"a"] * 3000) + b" = 1", "not valid TOML.*nested too deeply"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, content, sentence):
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=sentence):
        load_recipe(path)


def test_a_split_of_the_data_can_be_left_out():
    recipe = parse_recipe({**MINIMAL, "data": {"tokens": 0, "files": ["a.txt"] * 255}}, "r")
    assert recipe.data.tokens == 0 and len(recipe.data.files) == 255
    assert parse_recipe({**MINIMAL, "data": {"held_out_tokens": 0}}, "r").data.held_out_tokens == 0


recipes = st.fixed_dictionaries(
    {
        "teacher": st.fixed_dictionaries({"model": st.text(min_size=1, max_size=30)}),
        "pack": st.fixed_dictionaries(
            {"name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)}
        ),
        "shrink": st.fixed_dictionaries({"keep": st.floats(0.01, 1)}),
        "distill": st.fixed_dictionaries(
            {"steps": st.integers(0, 10**7), "learning_rate": st.floats(1e-9, 1)}
        ),
        "gates": st.fixed_dictionaries({}, optional={"max_kl": st.floats(1e-6, 1e6)}),
    }
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(values=recipes)
def test_any_valid_recipe_survives_toml(values):
    import tomllib

    recipe = parse_recipe(values, "r")
    again = parse_recipe(tomllib.loads(recipe.to_toml()), "r")
    assert again == recipe and isinstance(again, Recipe)
    assert parse_recipe(tomllib.loads(tomli_w.dumps(values)), "r").digest() == recipe.digest()


def test_domains_as_a_list_have_equal_shares_and_as_tables_their_weights():
    equal = parse_recipe({**MINIMAL, "data": {"domains": ["chat", "code"]}}, "r").data
    assert equal.shares() == {"chat": 0.5, "code": 0.5}
    tables = {"chat": {}, "law": {"weight": 3.0, "files": ["law.jsonl"]}}
    mixed = parse_recipe({**MINIMAL, "data": {"domains": tables}}, "r")
    assert mixed.data.shares() == {"chat": 0.25, "law": 0.75}
    import tomllib

    assert parse_recipe(tomllib.loads(mixed.to_toml()), "r") == mixed


def test_the_manual_has_every_key_in_its_tables_row():
    manual, found, table = EXAMPLES.parent / "docs" / "recipe.md", {}, ""
    for line in manual.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first, keys = line.split("|")[1:3]
            table = first.strip(" `[]") or table
            found.setdefault(table, set()).update(re.findall(r"`(\w+)`", keys))
    tables = {**SECTIONS, **{".".join(map(str, place)): s for place, s in TABLES.items()}}
    del tables["data.domains"]  # an example shows them
    for name, section in tables.items():
        known = {f for f in section.model_fields if f"{name}.{f}" not in tables}
        assert known == found.get(name), name
