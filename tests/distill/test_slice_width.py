"""A narrower model is what the mathematics of the wider one says it is."""

import gc
import json

import numpy as np
import pytest
import torch
from planted import convolutions, feed_forwards, half_precision, rewritten, text, writers
from tiny_families import FAMILY_OPTIONS

from edgekit.checkpoint import Checkpoint
from edgekit.describe import describe
from edgekit.distill import slice_plan
from edgekit.distill import slice_width as slice_width_module
from edgekit.distill.divergence import measure, remember
from edgekit.distill.loading import load_model
from edgekit.distill.open_model import open_model
from edgekit.distill.slice_config import narrower_feed_forward
from edgekit.distill.slice_importance import (
    Importance,
    hidden_norms,
    measure_importance,
    neuron_places,
)
from edgekit.distill.slice_plan import WidthOptions, most_worthy, plan_width
from edgekit.distill.slice_width import slice_width, write_narrower
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Silent

IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 500, (2, 40)))
TEXT = text()
HALF_NEURONS = WidthOptions(feed_forward=0.5, multiple_of=32)
HALF_CHANNELS = WidthOptions(hidden=0.5, multiple_of=32)
# their heads take their size from the hidden size, in the config or in transformers
HEADS_FOLLOW = ("cohere2", "helium", "stablelm", "olmoe", "dbrx")
# transformers 5.5 wants unused rows of LongCat's identity experts, and no wide DBRX at all
NOT_IN_TRANSFORMERS = ("longcat_flash", "dbrx")


def logits(directory):
    with open_model(directory) as opened, torch.inference_mode():
        return opened.model(IDS, use_cache=False).logits


def assert_same(found, expected, tolerance=2e-5):
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def assert_reloads(family, directory, expected):
    if family not in NOT_IN_TRANSFORMERS:
        with torch.inference_mode():
            assert_same(load_model(directory)(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_slicing_nothing_changes_no_weight(tiny_model, tmp_path, family):
    with Checkpoint(tiny_model(family)) as whole:
        plan = plan_width(whole, worth_of_nothing(whole.architecture), WidthOptions())
        write_narrower(whole, plan, tmp_path, Silent())
        with Checkpoint(tmp_path) as sliced:
            assert sliced.config == whole.config
            for spec in whole.specs:
                np.testing.assert_array_equal(sliced.float32(spec.name), whole.float32(spec.name))


def worth_of_nothing(architecture):
    neurons = {
        module: np.zeros(size)
        for layer in architecture.layers
        for module, size in neuron_places(layer)
    }
    square = np.zeros((len(architecture.layers) + 1,) * 2)
    return Importance(neurons, np.zeros(architecture.hidden_size), {}, square, square, 0)


def test_nothing_sliced_is_nothing_lost(tiny_model, tmp_path):
    report = slice_width(tiny_model("qwen2_moe"), TEXT, WidthOptions(), tmp_path, Silent())
    assert report.parameters_after == report.parameters_before
    assert abs(report.divergence.all.value) < 1e-6


def dead_neurons(model, rng):
    """Indices of the neurons to plant dead, by the names of the tensors that have their rows."""
    with Checkpoint(model) as checkpoint:
        config = narrower_feed_forward(checkpoint.config, 0.5, 32, "config.json")
        dead = {}
        for wide, narrow in zip(
            checkpoint.architecture.layers, describe(config).layers, strict=True
        ):
            blocks = zip(feed_forwards(wide), feed_forwards(narrow), strict=True)
            for block, after in blocks:
                some = rng.permutation(block.size)[: block.size - after.size]
                for module in (block.gate, block.up):
                    dead |= {module + ".weight": some, module + ".bias": some}
            if wide.mixture:
                size, after = (some.mixture.intermediate_size for some in (wide, narrow))
                for expert in range(wide.mixture.num_experts):
                    some = rng.permutation(size)[: size - after]
                    for projection, _ in wide.mixture.expert_names[:-1]:
                        rows = some
                        if projection == "gate_up":
                            rows = np.concatenate([2 * some, 2 * some + 1])
                        module = wide.mixture.expert(expert, projection)
                        dead |= {module + ".weight": rows, module + ".bias": rows}
        return dead


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_dead_neurons_go_and_nothing_else_changes(tiny_model, tmp_path, family):
    dead = dead_neurons(tiny_model(family), np.random.default_rng(1))

    def plant(spec, values):
        if spec.name in dead:
            values[dead[spec.name]] = 0

    planted = rewritten(tiny_model(family), tmp_path / "planted", plant)
    (tmp_path / "out").mkdir()
    report = slice_width(planted, TEXT, HALF_NEURONS, tmp_path / "out", Silent())
    assert report.parameters_after < report.parameters_before
    assert min(part.worth for part in report.parts) == pytest.approx(1)
    found = logits(tmp_path / "out")
    assert_same(found, logits(planted))
    assert_reloads(family, tmp_path / "out", found)


def plant_channels(architecture, dead, convolved):
    """A change after which the channels ``dead`` of the residual stream are 0, and the others of
    a family with LayerNorm have a mean of 0, so that no norm notices when the dead ones go."""
    writes = writers(architecture)
    inputs = convolutions(architecture)
    embedding = architecture.embedding + ".weight"
    centred = architecture.final_norm.kind == "layer"
    kept = np.setdiff1d(np.arange(architecture.hidden_size), dead)

    def silence(values):  # the first axis is the hidden one
        values[dead] = 0
        if centred:
            values[kept] -= values[kept].mean(0)

    def plant(spec, values):
        if spec.name == embedding:
            values *= 8  # far above the epsilon of norms, to which all this is exact
            silence(values.T)
        elif spec.name in writes:
            silence(values)
        elif spec.name in inputs:
            some = convolved[inputs[spec.name].output]
            for part in range(3):
                values[some + part * architecture.hidden_size] = 0

    return plant


@pytest.mark.parametrize("family", [f for f in FAMILY_OPTIONS if f not in HEADS_FOLLOW])
def test_dead_channels_go_and_the_norms_are_set_right(tiny_model, tmp_path, family):
    rng = np.random.default_rng(2)
    dead = np.sort(rng.permutation(64)[:32])
    with Checkpoint(tiny_model(family)) as checkpoint:
        architecture = checkpoint.architecture
        some = {c.output: rng.permutation(64)[:32] for c in convolutions(architecture).values()}
        change = plant_channels(architecture, dead, some)
        norms = {n.module for layer in architecture.layers for n in layer.norms()}
        norms.add(architecture.final_norm.module)

    def plant(spec, values):
        change(spec, values)
        if spec.name.rpartition(".")[0] in norms and spec.role == "bias":
            values[dead] = 0  # LayerNorm's own

    planted = rewritten(tiny_model(family), tmp_path / "planted", plant)
    (tmp_path / "out").mkdir()
    report = slice_width(planted, TEXT, HALF_CHANNELS, tmp_path / "out", Silent())
    assert report.channels == np.setdiff1d(np.arange(64), dead).tolist()
    assert report.hidden_after == 32 and report.channel_worth == pytest.approx(1)
    found = logits(tmp_path / "out")
    assert_same(found, logits(planted), 1e-3)
    assert_reloads(family, tmp_path / "out", found)
    with Checkpoint(planted) as wide, Checkpoint(tmp_path / "out") as narrow:
        assert heads(wide.architecture) == heads(narrow.architecture)


def heads(architecture):
    return [
        (a.num_heads, a.cache_values, architecture.num_key_value_heads)
        for a in architecture.attentions
    ]


@pytest.mark.parametrize("family", ["llama", "phi", "gpt_oss", "deepseek_v3"])
def test_a_neuron_that_fires_more_than_the_others_stays(tiny_model, tmp_path, family):
    loud = 41

    def plant(spec, values):
        if spec.projection in ("up", "gate", "gate_up"):
            values *= 1e-2
            rows = [2 * loud, 2 * loud + 1] if spec.projection == "gate_up" else [loud]
            values[rows] *= 1e2

    planted = rewritten(tiny_model(family), tmp_path / "planted", plant)
    with open_model(planted) as opened:
        importance = measure_importance(opened, TEXT, Silent())
        plan = plan_width(opened.checkpoint, importance, HALF_NEURONS)
    for module, kept in plan.neurons.items():
        if importance.neurons[module].any():
            assert loud in kept and importance.neurons[module].argmax() == loud, module


@pytest.mark.parametrize("family", ["llama", "olmo2", "nemotron", "gemma2", "qwen3_moe"])
def test_a_channel_that_every_norm_makes_much_of_stays(tiny_model, tmp_path, family):
    with open_model(tiny_model(family)) as opened:
        least = int(measure_importance(opened, TEXT, Silent()).channels.argmin())
        norms = {norm.module + ".weight" for norm, _ in hidden_norms(opened.architecture)}

    def plant(spec, values):
        if spec.name in norms:
            values[least] = 20.0

    planted = rewritten(tiny_model(family), tmp_path / "planted", plant)
    (tmp_path / "out").mkdir()
    report = slice_width(planted, TEXT, HALF_CHANNELS, tmp_path / "out", Silent())
    assert least in report.channels


def test_what_is_worth_most_stays_in_its_order_and_ties_go_to_the_first():
    assert most_worthy(np.array([1.0, 5.0, 0.0, 5.0, 1.0]), 3).tolist() == [0, 1, 3]


def test_norms_are_set_right_by_the_energy_that_stays(tiny_model, tmp_path):
    report = slice_width(tiny_model("llama"), TEXT, HALF_CHANNELS, tmp_path, Silent())
    with open_model(tiny_model("llama")) as opened:
        embedded = opened.decoder.embed_tokens(
            torch.from_numpy(np.concatenate([s.tokens for s in TEXT if not s.held_out])).long()
        ).double()
    squares = embedded.square().numpy()
    share = (squares[:, report.channels].sum(1) / squares.sum(1)).mean()
    name = "model.layers.0.input_layernorm.weight"
    with Checkpoint(tiny_model("llama")) as wide, Checkpoint(tmp_path) as narrow:
        np.testing.assert_allclose(
            narrow.float32(name),
            wide.float32(name)[report.channels] * np.sqrt(share * 2),
            rtol=1e-5,
        )


def test_experts_that_no_text_reached_are_told(tiny_model, tmp_path):
    def plant(spec, values):
        if spec.name.endswith("correction_bias"):
            values[1] = -100.0

    planted = rewritten(tiny_model("minimax_m2"), tmp_path / "planted", plant)
    (tmp_path / "out").mkdir()
    report = slice_width(planted, TEXT, HALF_NEURONS, tmp_path / "out", Silent())
    assert [part.unreached for part in report.parts] == [1, 1]


def test_the_report_is_written_and_counts_what_is_there(tiny_model, tmp_path):
    options = WidthOptions(feed_forward=0.5, hidden=0.5, multiple_of=32)
    report = slice_width(tiny_model("qwen2_moe"), TEXT, options, tmp_path, Silent())
    assert json.loads((tmp_path / "slicing.json").read_text()) == report.model_dump(mode="json")
    with Checkpoint(tmp_path) as sliced:
        assert sliced.architecture.parameters() == report.parameters_after
        assert sliced.architecture.hidden_size == report.hidden_after == 32
    sizes = {part.part: (part.size_before, part.size_after) for part in report.parts}
    assert sizes == {"experts": (64, 32), "shared": (96, 64)}
    assert (tmp_path / "tokenizer.json").is_file()
    assert report.calibration_tokens == sum(len(s.tokens) for s in TEXT if not s.held_out)


@pytest.mark.parametrize("options", [HALF_NEURONS, HALF_CHANNELS])
def test_every_tensor_stays_in_the_precision_in_which_it_was(tiny_model, tmp_path, options):
    half = half_precision(tiny_model("deepseek_v3"), tmp_path / "half")
    (tmp_path / "out").mkdir()
    report = slice_width(half, TEXT, options, tmp_path / "out", Silent())
    with Checkpoint(half) as whole, Checkpoint(tmp_path / "out") as sliced:
        scaled = {norm.module + ".weight" for norm, _ in hidden_norms(whole.architecture)}
        for name, kind in whole.dtypes.items():
            rescaled = name in scaled and report.hidden_after < report.hidden_before
            assert sliced.dtypes[name] == ("F32" if rescaled else kind), name
            if name.endswith("correction_bias"):
                np.testing.assert_array_equal(sliced.float32(name), whole.float32(name))


def reversed_rows(spec, values):
    return values[::-1] if spec.projection == "up" else values


def no_numbers(spec, values):
    return values * np.float32(np.nan if spec.projection == "up" else 1)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("options", [HALF_NEURONS, HALF_CHANNELS])
@pytest.mark.parametrize("wrong", [reversed_rows, no_numbers])
def test_a_tensor_that_is_written_wrongly_is_noticed(
    tiny_model, tmp_path, monkeypatch, family, options, wrong
):
    right = slice_plan.WidthPlan.tensor

    def tensor(plan, spec, values):
        return wrong(spec, right(plan, spec, values))

    monkeypatch.setattr(slice_plan.WidthPlan, "tensor", tensor)
    with pytest.raises(EdgekitError, match="differs from what was planned"):
        slice_width(tiny_model(family), TEXT, options, tmp_path, Silent())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma4_text", "olmo"])
def test_a_factor_that_was_forgotten_is_noticed(tiny_model, tmp_path, monkeypatch, family):
    original = slice_plan.hidden_scales

    def one_less(*arguments):
        scales = original(*arguments)
        del scales[max(scales, key=lambda name: abs(scales[name].factor - 1))]
        return scales

    monkeypatch.setattr(slice_plan, "hidden_scales", one_less)
    with pytest.raises(EdgekitError, match="differs from what was planned"):
        slice_width(tiny_model(family), TEXT, HALF_CHANNELS, tmp_path, Silent())


def test_neurons_that_are_cut_out_of_one_projection_only_are_noticed(
    tiny_mixtral, tmp_path, monkeypatch
):
    original = slice_plan.neuron_cuts

    def shifted(architecture, neurons):
        cuts = original(architecture, neurons)
        name = architecture.expert(1, 0, "gate") + ".weight"
        return cuts | {name: [(0, (cuts[name][0][1] + 1) % 64)]}

    monkeypatch.setattr(slice_plan, "neuron_cuts", shifted)
    with pytest.raises(EdgekitError, match="differs from what was planned"):
        slice_width(tiny_mixtral, TEXT, HALF_NEURONS, tmp_path, Silent())


@pytest.mark.parametrize("options", [HALF_NEURONS, HALF_CHANNELS])
@pytest.mark.parametrize("family", ["gemma2", "olmo", "gpt_oss", "lfm2"])
def test_a_model_in_bfloat16_is_as_near_to_its_plan(tiny_model, tmp_path, family, options):
    half = half_precision(tiny_model(family), tmp_path / "half")
    (tmp_path / "out").mkdir()
    report = slice_width(half, TEXT, options, tmp_path / "out", Silent())  # which proves it
    assert report.parameters_after < report.parameters_before


def test_the_whole_model_is_out_of_memory_when_the_narrower_one_is_written(
    tiny_model, tmp_path, monkeypatch
):
    alive, write = [], slice_width_module.write_narrower

    def counted(*arguments):
        alive.append(sum(isinstance(o, torch.nn.Embedding) for o in gc.get_objects()))
        write(*arguments)

    monkeypatch.setattr(slice_width_module, "write_narrower", counted)
    gc.collect()
    before = sum(isinstance(o, torch.nn.Embedding) for o in gc.get_objects())
    gc.disable()  # which might free it by chance
    try:
        slice_width(tiny_model("llama"), TEXT, HALF_CHANNELS, tmp_path, Silent())
    finally:
        gc.enable()
    assert alive == [before]


def test_the_loss_is_measured_against_the_teacher_of_what_is_sliced(tiny_model, tmp_path):
    model, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    report = slice_width(model, TEXT, HALF_NEURONS, tmp_path, Silent(), teacher)
    targets = remember(load_model(teacher), [s for s in TEXT if s.held_out], Silent())
    found = measure(load_model(tmp_path), targets, Silent()).divergence()
    assert report.divergence.all.value == pytest.approx(found.all.value, rel=1e-4)
    assert found.all.value > 0.1


@pytest.mark.parametrize("family", HEADS_FOLLOW)
def test_families_whose_heads_follow_the_hidden_size_are_refused(tiny_model, tmp_path, family):
    with pytest.raises(BadInputError, match="take their size from hidden_size"):
        slice_width(tiny_model(family), TEXT, HALF_CHANNELS, tmp_path, Silent())


def test_a_mamba_keeps_the_hidden_size(tiny_model, tmp_path):
    model = tiny_model(
        "granitemoehybrid", layer_types=["mamba", "attention"], mamba_n_heads=8, mamba_d_head=16,
        mamba_d_state=16,
    )  # fmt: skip
    with pytest.raises(BadInputError, match="layer 0 is a Mamba"):
        slice_width(model, TEXT, HALF_CHANNELS, tmp_path, Silent())
    report = slice_width(model, TEXT, HALF_NEURONS, tmp_path, Silent())
    assert_reloads("granitemoehybrid", tmp_path, logits(tmp_path))
    assert report.parameters_after < report.parameters_before


def test_a_tied_head_behind_a_norm_without_weight_is_refused(tiny_model, tmp_path):
    model = tiny_model("olmo", tie_word_embeddings=True)
    with pytest.raises(BadInputError, match="final norm has no weight"):
        slice_width(model, TEXT, HALF_CHANNELS, tmp_path, Silent())


def test_what_transformers_would_not_load_is_refused_before_anything_runs(tiny_model, tmp_path):
    model = tiny_model("llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=1)
    options = WidthOptions(hidden=0.67, multiple_of=32)
    with pytest.raises(BadInputError, match=r"\(64\) is not a multiple of the number of attention"):
        slice_width(model, TEXT, options, tmp_path, Silent())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (WidthOptions(feed_forward=0.0), "feed_forward is 0.0, expected a share"),
        (WidthOptions(hidden=1.5), "hidden is 1.5, expected a share"),
        (WidthOptions(hidden=0.5, multiple_of=0), "multiple_of is 0"),
        (WidthOptions(feed_forward=0.5, hidden=0.9, multiple_of=32), "hidden 0.9 takes nothing"),
        (WidthOptions(feed_forward=0.9, multiple_of=32), "feed_forward 0.9 takes nothing away"),
        (WidthOptions(hidden=0.5), "hidden_size is 64, which has no part of a multiple of 128"),
    ],
)
def test_a_share_that_cannot_be_is_refused(tiny_llama, tmp_path, options, match):
    with pytest.raises(BadInputError, match=match):
        slice_width(tiny_llama, TEXT, options, tmp_path, Silent())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("held_out", [True, False])
def test_text_of_one_kind_only_is_refused(tiny_llama, tmp_path, held_out):
    some = [s for s in TEXT if s.held_out == held_out]
    with pytest.raises(BadInputError, match=r"\[data\]"):
        slice_width(tiny_llama, some, HALF_NEURONS, tmp_path, Silent())


def test_weights_that_give_no_numbers_are_named(tiny_llama, tmp_path):
    def plant(spec, values):
        if spec.name.endswith("layers.1.mlp.up_proj.weight"):
            values[3] = np.inf

    planted = rewritten(tiny_llama, tmp_path / "planted", plant)
    with pytest.raises(BadInputError, match=r"layers\.1\.mlp\.down_proj gives values that are not"):
        slice_width(planted, TEXT, HALF_NEURONS, tmp_path, Silent())
