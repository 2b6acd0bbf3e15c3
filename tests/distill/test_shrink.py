"""Experts are measured, chosen and left out as defined, in every family."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_families import SPARSE

from edgekit.checkpoint import Checkpoint
from edgekit.distill.collect import Share, collect
from edgekit.distill.keep_map import KEEP_MAP, read_keep_map
from edgekit.distill.loading import load_model
from edgekit.distill.masked import masked
from edgekit.distill.open_model import open_model
from edgekit.distill.prune import check_pruned, masked_logits, write_pruned
from edgekit.distill.shrink import measure_experts, shrink
from edgekit.distill.statistics import ARRAYS, Statistics, add_up, require_whole
from edgekit.errors import BadInputError, EdgekitError
from edgekit.progress import Silent
from edgekit.recipe import ShrinkSection
from edgekit.sequences import FILE_NAME, TokenSequence, write_sequences

SHRINKING = [family for family in SPARSE if family not in ("jetmoe", "longcat_flash")]
IDS = torch.from_numpy(np.random.default_rng(0).integers(3, 500, (1, 40)))


def text(count=16, length=24):
    """Two domains, a quarter of each held out."""
    rng = np.random.default_rng(1)
    return [
        TokenSequence(
            rng.integers(*((3, 250) if i % 2 else (250, 500)), length).astype(np.int32),
            "low" if i % 2 else "high",
            i // 2 % 4 == 3,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sequences")
    write_sequences(directory / FILE_NAME, text())
    return directory


PER_EXPERT = ("tokens", "gate_sum", "norm_sum", "norm_sq_sum", "gated_sum", "gated_sq_sum",
              "output_max")  # fmt: skip


class Naive:
    """The definition: token by token, slot by slot."""

    def __init__(self, block):
        self.block, self.x = block, None

    def routed(self, x, routing):
        self.x, self.routing = x, routing

    def expert(self, *_):
        pass

    def sums(self):
        """Of every expert, and of every pair."""
        mixture = self.block.mixture
        experts, neurons = mixture.num_experts, mixture.intermediate_size
        found = {n: np.zeros(experts) for n in PER_EXPERT}
        found["gated_output_sum"] = np.zeros((experts, self.x.shape[1]))
        found |= {n: np.zeros((experts, neurons)) for n in ("neuron_gated_sum", "neuron_sq_sum")}
        pairs = np.zeros((experts, experts))
        for x, chosen, weights in zip(self.x, self.routing.index, self.routing.weight):
            real = [e for e in chosen.tolist() if e < experts]
            for a in real:
                for b in real:
                    pairs[a, b] += 1
            for e, gate in zip(chosen.tolist(), weights.tolist()):
                if e >= experts:
                    continue
                read = x
                if mixture.scoring == "sigmoid_input":
                    read, gate = x * gate, 1.0
                hidden = self.block.hidden(read[None], e)
                y = self.block.output(hidden, e)[0].double().numpy()
                hidden = hidden[0].double().numpy()
                norm = float(np.linalg.norm(y))
                found["tokens"][e] += 1
                found["gate_sum"][e] += gate
                found["norm_sum"][e] += norm
                found["norm_sq_sum"][e] += norm**2
                found["gated_sum"][e] += gate * norm
                found["gated_sq_sum"][e] += (gate * norm) ** 2
                found["output_max"][e] = max(found["output_max"][e], float(np.abs(y).max()))
                found["gated_output_sum"][e] += gate * y
                found["neuron_gated_sum"][e] += gate * np.abs(hidden)
                found["neuron_sq_sum"][e] += hidden**2
        return found, pairs

    def shares(self):
        """The router's, of every choice, summed; and their entropy."""
        total, entropy = 0.0, 0.0
        for logits in self.routing.logits.double().numpy():
            worth = np.exp(logits)
            if self.block.mixture.scoring in ("sigmoid", "sigmoid_input"):
                worth = 1 / (1 + np.exp(-logits))
            share = worth / worth.sum()
            total = total + share
            entropy -= float((share * np.log(share)).sum())
        return total, entropy


def summed_cosines(pairs):
    """Of a layer's input and output, token by token."""
    total = 0.0
    for before, after in pairs:
        for x, y in zip(before.flatten(0, 1).double(), after.flatten(0, 1).double()):
            total += float(x @ y / x.norm() / y.norm())
    return total


@pytest.mark.parametrize("family", SPARSE)
def test_statistics_equal_a_loop_over_tokens(tiny_model, tmp_path, family):
    directory = tiny_model(family)
    sequence = text(1, 30)[0]
    statistics = collect(directory, [sequence], tmp_path, Silent())
    with open_model(directory) as opened, torch.inference_mode():
        layer, block = max(opened.mixtures.items())
        block.observer = naive = Naive(block)
        seen = {number: [] for number in range(len(opened.layers))}
        for number, module in enumerate(opened.layers):
            module.register_forward_hook(lambda _, x, y, n=number: seen[n].append((x[0], y)))
        opened.model(torch.from_numpy(sequence.tokens.astype(np.int64))[None], use_cache=False)
        expected, pairs = naive.sums()
        logits = naive.routing.logits.double().numpy()
    row = statistics.layers.index(layer)
    shares, entropy = naive.shares()
    cosines = [summed_cosines(pairs) for pairs in seen.values()]
    for name, values in expected.items():
        per_class = name in PER_EXPERT
        found = statistics.total(name)[row] if per_class else getattr(statistics, name)[row]
        limit = 1e-5 * np.abs(values).max()  # signed sums may cancel
        np.testing.assert_allclose(found, values, rtol=2e-4, atol=limit, err_msg=name)
    np.testing.assert_allclose(statistics.probability_sum[row, 0], shares, rtol=1e-4)
    np.testing.assert_allclose(statistics.entropy_sum[row, 0], entropy, rtol=1e-4)
    np.testing.assert_allclose(statistics.block_cosine_sum[:, 0], cosines, rtol=1e-5)
    np.testing.assert_allclose(statistics.block_influence, 1 - np.array(cosines) / 30, atol=1e-5)
    undecided = entropy / 30 / np.log(len(shares))
    assert statistics.router_entropy[row] == pytest.approx(undecided, rel=1e-4)
    np.testing.assert_array_equal(statistics.coactivation[row], pairs)
    np.testing.assert_allclose(statistics.logit_gram[row], logits.T @ logits, rtol=1e-3, atol=1e-3)
    assert statistics.seen.sum() == 30


def test_domains_and_halves_are_told_apart(tiny_mixtral, tmp_path):
    made = [s for s in text() if not s.held_out]
    whole = collect(tiny_mixtral, made, tmp_path / "a", Silent())
    low = collect(tiny_mixtral, [s for s in made if s.domain == "low"], tmp_path / "b", Silent())
    np.testing.assert_allclose(
        whole.domain("low").total("gated_sum"), low.total("gated_sum"), rtol=1e-5
    )
    first = [s for d in ("high", "low") for s in [s for s in made if s.domain == d][::2]]
    half = collect(tiny_mixtral, first, tmp_path / "c", Silent())
    np.testing.assert_array_equal(whole.half(0).total("tokens"), half.total("tokens"))
    assert whole.half(0).seen.sum() + whole.half(1).seen.sum() == sum(len(s.tokens) for s in made)


def test_two_workers_and_an_interrupted_pass_give_the_bytes_of_one(
    tiny_mixtral, tmp_path, monkeypatch
):
    import edgekit.distill.collect as module

    monkeypatch.setattr(module, "MAX_CHUNKS", 4)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 1)
    made = text()
    collect(tiny_mixtral, made, tmp_path / "one", Silent()).save(tmp_path / "one.safetensors")
    first = collect(tiny_mixtral, made, tmp_path / "two", Silent(), Share(1, 2))
    with pytest.raises(BadInputError, match="chunks 0, 2 of 4 are missing"):
        require_whole(first, "two")
    original, calls = module.run_chunk, []

    def interrupted(opened, digest, text, chunks, number, task=None):
        calls.append(number)
        if number == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return original(opened, digest, text, chunks, number, task)

    monkeypatch.setattr(module, "run_chunk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_mixtral, made, tmp_path / "two", Silent(), Share(0, 2))
    result = collect(tiny_mixtral, made, tmp_path / "two", Silent(), Share(0, 2))
    require_whole(result, "two")
    assert calls == [0, 2, 2]  # what was finished is not run again
    result.save(tmp_path / "two.safetensors")
    one, two = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two


def test_a_file_of_statistics_comes_back_as_it_was(tiny_mixtral, sequences, tmp_path):
    made = measure_experts(tiny_mixtral, sequences, tmp_path, Silent(), tmp_path / "scratch")
    read = Statistics.load(tmp_path / "statistics.safetensors")
    assert read.info == made.info
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert np.array_equal(add_up([read]).tokens, read.tokens)
    with pytest.raises(BadInputError, match="not a file of expert statistics"):
        Statistics.load(sequences / FILE_NAME)


def test_statistics_of_another_checkpoint_or_text_are_refused(
    tiny_mixtral, tiny_model, sequences, tmp_path
):
    measure_experts(tiny_mixtral, sequences, tmp_path, Silent(), tmp_path / "scratch")
    section, out = ShrinkSection(keep=0.5), tmp_path / "out"
    out.mkdir()
    other = tiny_model("mixtral", seed=3)
    with pytest.raises(BadInputError, match="of another checkpoint"):
        shrink(other, sequences, section, out, Silent(), tmp_path / "s", tmp_path)
    longer = tmp_path / "longer"
    longer.mkdir()
    write_sequences(longer / FILE_NAME, text(18))
    with pytest.raises(BadInputError, match="of another text"):
        shrink(tiny_mixtral, longer, section, out, Silent(), tmp_path / "s", tmp_path)


def test_statistics_of_another_tokenizer_are_refused(tiny_mixtral, sequences, tmp_path):
    """The weights are the same, and so are the numbers of the tokens."""
    measured, teacher, out = (tmp_path / name for name in ("measured", "teacher", "out"))
    measured.mkdir(), out.mkdir()
    shutil.copytree(tiny_mixtral, teacher)
    measure_experts(teacher, sequences, measured, Silent(), tmp_path / "scratch")
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = [token for token, number in vocabulary.items() if number in (300, 301)]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInputError, match="of another tokenizer"):
        shrink(teacher, sequences, ShrinkSection(keep=0.5), out, Silent(), tmp_path / "s", measured)


def test_weights_that_are_not_numbers_are_named(tiny_model, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = tiny_model("mixtral", seed=5)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(BadInputError, match="expert 2 of layer 1 gives values"):
        collect(tmp_path, text(), tmp_path / "scratch", Silent())


@pytest.mark.parametrize("criterion", ["reap", "auto"])
@pytest.mark.parametrize("tensor", ["model.norm.weight", "lm_head.weight"])
def test_a_last_norm_or_head_that_gives_no_numbers_is_bad_input(
    tiny_qwen3_moe, sequences, tmp_path, criterion, tensor
):
    from safetensors.numpy import load_file, save_file

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    tensors = load_file(tiny_qwen3_moe / "model.safetensors")
    tensors[tensor][..., 3] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_bytes((tiny_qwen3_moe / "config.json").read_bytes())
    section = ShrinkSection(keep=0.75, criterion=criterion)
    with pytest.raises(BadInputError, match="source: gives logits that are not finite"):
        shrink(source, sequences, section, out, Silent(), tmp_path / "scratch")


def test_bad_text_is_refused(tiny_mixtral, tiny_llama, tmp_path):
    with pytest.raises(BadInputError, match="no calibration text"):
        collect(tiny_mixtral, [s for s in text() if s.held_out], tmp_path, Silent())
    with pytest.raises(BadInputError, match="600 tokens is longer than the context of 512"):
        collect(tiny_mixtral, text(1, 600), tmp_path, Silent())
    with pytest.raises(BadInputError, match="dense llama has no experts"):
        collect(tiny_llama, text(), tmp_path, Silent())


@pytest.mark.parametrize("family", SHRINKING)
def test_a_pruned_model_of_every_family_is_the_masked_one_to_transformers(
    tiny_model, tmp_path, family
):
    directory = tiny_model(family)
    rng = np.random.default_rng(4)
    with open_model(directory) as opened, torch.inference_mode():
        mixture = opened.architecture.moe
        size = mixture.num_experts // mixture.num_groups
        keep = max(2, size - 1) if mixture.num_groups == 1 else size
        if mixture.num_groups == 1:
            kept = {n: sorted(rng.permutation(size)[:keep].tolist()) for n in opened.mixtures}
        else:  # groups of two: their best two are rated, so every expert of a group stays
            kept = {n: list(range(mixture.num_experts)) for n in opened.mixtures}
        with masked(opened, kept):
            expected = opened.model(IDS, use_cache=False).logits
        smaller = write_pruned(opened.checkpoint, kept, tmp_path, Silent())
    if family != "dbrx":  # transformers multiplies its experts from the wrong side
        with torch.inference_mode():
            found = load_model(tmp_path)(IDS, use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    check_pruned(tmp_path, smaller.parameters(), kept, IDS[0].tolist(), expected[0].float())


def test_group_limited_routers_lose_the_same_number_in_every_group(tiny_model, tmp_path):
    """Twelve experts in four groups, three each, become eight."""
    directory = tiny_model("deepseek_v3", n_routed_experts=12, num_experts=12, num_local_experts=12)
    kept = {1: [0, 2, 3, 4, 7, 8, 9, 11]}
    with open_model(directory) as opened:
        expected = masked_logits(opened, kept, IDS[0].tolist())
        smaller = write_pruned(opened.checkpoint, kept, tmp_path, Silent())
    check_pruned(tmp_path, smaller.parameters(), kept, IDS[0].tolist(), expected)
    with torch.inference_mode():
        found = load_model(tmp_path)(IDS, use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "part"), [("gpt_oss", "router.bias"), ("deepseek_v3", "correction_bias")]
)
def test_a_vector_that_was_not_sliced_with_the_experts_is_found_out(
    tiny_model, tmp_path, family, part
):
    from safetensors.numpy import load_file, save_file

    directory = tiny_model(family)
    with open_model(directory) as opened:
        count = opened.architecture.moe.num_experts
        groups = opened.architecture.moe.num_groups
        order = np.arange(count).reshape(groups, -1)[:, ::-1].reshape(-1).tolist()
        kept = dict.fromkeys(opened.mixtures, order)
        expected = masked_logits(opened, kept, IDS[0].tolist())
        smaller = write_pruned(opened.checkpoint, kept, tmp_path, Silent())
    check_pruned(tmp_path, smaller.parameters(), kept, IDS[0].tolist(), expected)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [n for n in tensors if n.endswith(part)]:
        tensors[name] = np.ascontiguousarray(tensors[name][::-1])
        tensors[name] += np.linspace(0, 3, count, dtype=tensors[name].dtype)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgekitError, match="differs from the original"):
        check_pruned(tmp_path, smaller.parameters(), kept, IDS[0].tolist(), expected)


def test_a_writer_that_does_nothing_is_found_out(tiny_mixtral, tmp_path):
    with open_model(tiny_mixtral) as opened:
        everything = {layer: [0, 1, 2, 3] for layer in opened.mixtures}
        kept = {layer: [0, 2, 3] for layer in opened.mixtures}
        expected = masked_logits(opened, kept, IDS[0].tolist())
        whole = write_pruned(opened.checkpoint, everything, tmp_path, Silent())
    with pytest.raises(EdgekitError, match="does not state the experts"):
        check_pruned(tmp_path, whole.parameters(), kept, IDS[0].tolist(), expected)


def test_keeping_all_experts_keeps_every_byte(tiny_qwen3_moe, sequences, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shrink(tiny_qwen3_moe, sequences, ShrinkSection(keep=1.0), out, Silent(), tmp_path / "s")
    with Checkpoint(tiny_qwen3_moe) as before, Checkpoint(out) as after:
        for spec in before.specs:
            np.testing.assert_array_equal(before.float32(spec.name), after.float32(spec.name))


@pytest.mark.parametrize("criterion", ["reap", "auto"])
def test_shrink_reports_what_it_kept_and_why(tiny_mixtral, sequences, tmp_path, criterion):
    out = tmp_path / "out"
    out.mkdir()
    section = ShrinkSection(keep=0.75, criterion=criterion)
    report = shrink(tiny_mixtral, sequences, section, out, Silent(), tmp_path / "scratch")
    assert (report.experts_before, report.experts_after) == (4, 3)
    assert all(kept == sorted(set(kept)) and len(kept) == 3 for kept in report.kept.values())
    np.testing.assert_allclose(np.sum(report.usage_after, axis=1), 1, atol=1e-3)
    assert set(report.usage_by_domain) == {"high", "low"}
    with Checkpoint(out) as checkpoint:
        assert checkpoint.architecture.parameters() == report.parameters_after
    assert read_keep_map(out) == report.kept == read_keep_map(out / KEEP_MAP)
    if criterion == "auto":
        assert report.criterion == report.automatic.chosen
        chosen = {c.name: c.divergence.worst for c in report.automatic.candidates}
        tied = report.automatic.tied
        assert min(v for n, v in chosen.items() if "random" not in n) in {chosen[n] for n in tied}
        assert sum(c.control for c in report.automatic.candidates) == 3


@pytest.mark.parametrize(
    "section",
    [
        ShrinkSection(keep=0.75, criterion="auto"),
        ShrinkSection(keep=1.0, nested=(1.0, 0.5)),
    ],
    ids=["auto", "nested"],
)
def test_a_model_larger_than_memory_becomes_the_same_student(
    tiny_mixtral, sequences, tmp_path, monkeypatch, section
):
    """Every time it runs, its layers are read one after another."""
    outs = [tmp_path / "whole", tmp_path / "layer"]
    for out in outs:
        out.mkdir()
        if out.name == "layer":
            monkeypatch.setattr("edgekit.distill.resident.available_memory", lambda: 0)
        shrink(tiny_mixtral, sequences, section, out, Silent(), tmp_path / "scratch")
    for name in ("model.safetensors", "config.json", KEEP_MAP):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_shrinking_a_dense_model_or_below_top_k_is_refused(
    tiny_llama, tiny_mixtral, sequences, tmp_path
):
    def attempt(model, keep):
        shrink(model, sequences, ShrinkSection(keep=keep), tmp_path, Silent(), tmp_path)

    with pytest.raises(BadInputError, match="dense llama has no experts"):
        attempt(tiny_llama, 0.5)
    with pytest.raises(BadInputError, match=r"is 1, fewer than the 2"):
        attempt(tiny_mixtral, 0.25)


SIXTEEN = {"n_routed_experts": 16, "num_experts": 16, "num_local_experts": 16}


@pytest.mark.parametrize(
    ("family", "section", "held_out", "sentence"),
    [
        ("deepseek_v3", {"keep": 0.625}, True, "do not divide into the router's 4 groups"),
        ("deepseek_v3", {"keep": 1.0, "nested": (1.0, 0.5)}, True, "chooses 2 of 4 groups"),
        ("mixtral", {"keep": 0.5, "criterion": "auto"}, False, "no held-out sequence"),
        ("mixtral", {"keep": 1.0, "nested": (1.0, 0.5)}, False, "no held-out sequence"),
        ("mixtral", {"keep": 0.5, "previous": "{}"}, True, "a keep-map of layers 0, 7"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    tiny_model, tmp_path, monkeypatch, family, section, held_out, sentence
):
    earlier = tmp_path / KEEP_MAP
    earlier.write_text('{"kept": {"0": [1], "7": [2]}}')
    if "previous" in section:
        section = {**section, "previous": str(earlier)}
    write_sequences(tmp_path / FILE_NAME, [s for s in text() if held_out or not s.held_out])
    monkeypatch.setattr("edgekit.distill.shrink.collect", None)
    with pytest.raises(BadInputError, match=sentence):
        shrink(
            tiny_model(family, **SIXTEEN), tmp_path, ShrinkSection(**section), tmp_path, Silent(),
            tmp_path,
        )  # fmt: skip


def test_a_file_that_is_no_keep_map_is_refused(tiny_mixtral):
    with pytest.raises(BadInputError, match="no keep-map"):
        read_keep_map(tiny_mixtral / "config.json")
