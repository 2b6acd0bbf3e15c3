"""What a training needs is known before it starts, and less is needed where that is asked for."""

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_OPTIONS
from training_runs import OPTIONS, captured, healed, text

from edgekit.distill.lora import adapted_places
from edgekit.distill.open_model import open_model
from edgekit.distill.rows import hidden_states
from edgekit.distill.trainable import trainable_parameters
from edgekit.distill.training_memory import activation_values, training_needs
from edgekit.distill.working import recomputed
from edgekit.errors import OutOfResourcesError
from edgekit.recipe import DistillSection
from edgekit.sequences import TokenSequence


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    return captured(tiny_mixtral, tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def student(tiny_model):
    return tiny_model("mixtral", seed=3)


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_activations_are_estimated_near_what_is_kept(tiny_model, family):
    with open_model(tiny_model(family)) as opened:
        trainable_parameters(opened, ["all"])
        own = {p.untyped_storage().data_ptr() for p in opened.model.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        tokens = np.arange(3, 131, dtype=np.int32)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = hidden_states(opened, [TokenSequence(tokens, "a", False)] * 2)
        found = sum(kept.values()) / 4 / len(states)
        assert 0.95 * found < activation_values(opened.architecture, 128, False) < 2.5 * found
        whole = activation_values(opened.architecture, 128, True)
        assert whole < activation_values(opened.architecture, 128, False)


def test_adafactor_keeps_less_than_a_weight_of_each_weight(student):
    with open_model(student) as opened:
        needs = {
            optimizer: training_needs(opened, DistillSection(**OPTIONS, optimizer=optimizer), 40)
            for optimizer in ("adamw", "adafactor")
        }
        moments = 2 * 4 * opened.architecture.parameters()
        # a norm or router may be counted by transformers and not be in the architecture's
        assert needs["adamw"].fixed - needs["adafactor"].fixed == pytest.approx(moments, rel=0.01)


def test_too_little_memory_names_the_micro_batch_that_fits(student, cache, tmp_path, monkeypatch):
    import edgekit.distill.stage as stage
    import edgekit.distill.training_memory as memory

    with open_model(student, load=False) as opened:
        needs = training_needs(opened, DistillSection(**OPTIONS), 40)
    for module in (stage, memory):
        monkeypatch.setattr(module, "free_memory", lambda _: needs.total(300))
    with pytest.raises(OutOfResourcesError, match="lower micro_batch_tokens to 300"):
        healed(student, cache, tmp_path / "out", micro_batch_tokens=512)
    report, _ = healed(student, cache, tmp_path / "fits", micro_batch_tokens=300, steps=1)
    assert report.steps == 1
    for module in (stage, memory):
        monkeypatch.setattr(module, "free_memory", lambda _: needs.fixed)
    with pytest.raises(OutOfResourcesError, match=r"not one sequence of .* tokens fits.*lora_rank"):
        healed(student, cache, tmp_path / "none")


def test_adapters_recomputing_and_fewer_parts_need_less(student):
    with open_model(student, load=False) as opened:

        def total(**options):
            section = DistillSection(**{**OPTIONS, **options})
            return training_needs(opened, section, 40).total(1024)

        whole = total()
        assert total(lora_rank=4) < whole
        assert total(activation_checkpointing=True) < whole
        assert total(trainable=("router",)) < whole
        places = adapted_places(opened, trainable_parameters(opened, ("attention",)))
        assert {p.name.split(".")[-2] for p in places} == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_a_full_device_is_said_in_a_sentence(student, cache, tmp_path, monkeypatch):
    import edgekit.distill.gradients as module

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "hidden_states", full)
    with pytest.raises(OutOfResourcesError, match=r"512 tokens.*lower it to 256"):
        healed(student, cache, tmp_path / "out")


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "longcat_flash", "qwen3_next", "lfm2"])
def test_recomputed_layers_have_the_same_gradients(tiny_model, family):
    with open_model(tiny_model(family)) as opened:
        parameters = trainable_parameters(opened, ("all",))
        found = []
        for twice in (False, True):
            opened.model.zero_grad()
            if twice:
                with recomputed(opened.layers):
                    hidden_states(opened, text(3)[:1]).square().mean().backward()
            else:
                hidden_states(opened, text(3)[:1]).square().mean().backward()
            found.append({n: p.grad for n, p in parameters.items() if p.grad is not None})
        assert found[0].keys() == found[1].keys() and len(found[0]) > 5
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, msg=name)
