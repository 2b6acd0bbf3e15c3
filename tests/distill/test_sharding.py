"""A student split over processes, here a group of one: its weights are of the kind that several
processes hold shares of, so that what handles them can be tested without any others."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from training_runs import captured, text

from edgekit.distill.cache import LogitCache
from edgekit.distill.open_model import open_model
from edgekit.distill.pass_memory import weight_needs
from edgekit.distill.processes import Processes
from edgekit.distill.sharding import clip, is_split, load_split, put_together
from edgekit.distill.stage import open_student
from edgekit.distill.trainer import Trainer
from edgekit.distill.training_memory import training_needs
from edgekit.errors import BadInputError
from edgekit.progress import Silent
from edgekit.recipe import DistillSection

ALONE = Processes(0, 1, sharded=True)
PARAMS = DistillSection(steps=6, batch_tokens=120, learning_rate=3e-3, trainable=("all",),
                        evaluate_every=3, micro_batch_tokens=64, save_every=2,
                        precision="float32")  # fmt: skip


@pytest.fixture(scope="module")
def group():
    """A process group without others."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    return LogitCache(captured(tiny_mixtral, tmp_path_factory.mktemp("cache")))


@contextmanager
def opened_to_train(student, cache, saved, processes=ALONE):
    with open_model(student, load=not processes.sharded) as opened:
        if processes.sharded:
            load_split(opened, processes)
        trainer = Trainer(
            opened, PARAMS, cache.vocab_size, held_out=cache, saved=saved, processes=processes
        )
        trainer.begin(Silent())
        yield trainer


def trained(student, cache, saved, processes=ALONE):
    """A trainer and the weights after training."""
    with opened_to_train(student, cache, saved, processes) as trainer:
        trainer.train(cache, 0, PARAMS.steps, Silent())
        trainer.finish(Silent())
        if processes.sharded:
            put_together(trainer.opened, processes)
        tensor = trainer.opened.tensors()
        return trainer, {s.name: tensor(s).copy() for s in trainer.opened.checkpoint.specs}


@pytest.mark.parametrize("family", ["mixtral", "gemma3_text", "granitemoehybrid"])
def test_a_split_student_learns_what_a_whole_one_does(group, cache, tiny_model, tmp_path, family):
    student = tiny_model(family, seed=3)
    split, found = trained(student, cache, tmp_path / "split")
    whole, expected = trained(student, cache, tmp_path / "whole", Processes())
    np.testing.assert_allclose(split.state.norms, whole.state.norms, rtol=1e-4)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)


def test_weights_of_layers_are_split_and_the_rest_is_whole(group, tiny_mixtral):
    with open_model(tiny_mixtral, load=False) as opened:
        load_split(opened, ALONE)
        assert all(is_split(p) for layer in opened.layers for p in layer.parameters())
        assert not is_split(opened.model.get_output_embeddings().weight)


def test_it_continues_to_the_same_weights(group, cache, tiny_model, tmp_path):
    student = tiny_model("mixtral", seed=3)
    _, undisturbed = trained(student, cache, tmp_path / "a")
    for stop in (2, 5):
        with opened_to_train(student, cache, tmp_path / "b") as trainer:
            trainer.train(cache, 0, stop, Silent())
            trainer.save()
    _, continued = trained(student, cache, tmp_path / "b")
    for name, values in undisturbed.items():
        np.testing.assert_array_equal(continued[name], values, err_msg=name)


def test_gradients_of_both_kinds_have_one_norm(group, tiny_mixtral):
    with open_model(tiny_mixtral, load=False) as opened:
        load_split(opened, ALONE)
        split = next(iter(opened.layers[0].parameters())).detach().clone()
    plain = torch.tensor([3.0, -4.0])
    local = split.to_local()
    local.zero_().view(-1)[:1] = 12.0
    assert clip([split, plain], 6.5, ALONE) == pytest.approx(13.0)
    assert plain.tolist() == pytest.approx([1.5, -2.0], rel=1e-5)
    assert local.view(-1)[0].item() == pytest.approx(6.0, rel=1e-5)
    assert clip([split, plain], 100.0, ALONE) == pytest.approx(6.5, rel=1e-5)
    assert plain.tolist() == pytest.approx([1.5, -2.0], rel=1e-5)


def test_every_share_needs_less_memory(tiny_mixtral):
    with open_model(tiny_mixtral, load=False) as opened:
        inside = sum(p.numel() for p in opened.layers.parameters())
        largest = max(sum(p.numel() for p in layer.parameters()) for layer in opened.layers)
        loading = weight_needs(opened)
        needs = [training_needs(opened, PARAMS, 40, shares).fixed for shares in (1, 2, 4)]
    assert needs[1] - needs[2] == pytest.approx(16 * inside / 4, abs=64)
    # a layer is whole, with its gradient and what is sent of it
    extra = max(loading.largest_layer, 12 * largest) - max(loading.largest_layer, loading.rest)
    assert needs[0] - needs[1] == pytest.approx(16 * inside / 2 - extra, abs=64)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lora_rank": 2}, "lora_rank"),
        ({"optimizer": "adafactor"}, "adafactor"),
        ({"micro_batch_tokens": 0}, "micro_batch_tokens"),
        ({"precision": "bfloat16"}, "bfloat16 without activation_checkpointing"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tiny_mixtral, monkeypatch, options, named):
    monkeypatch.setattr(Processes, "start", lambda device: ALONE)
    params = PARAMS.model_copy(update=options)
    with (
        pytest.raises(BadInputError, match=named),
        open_student(tiny_mixtral, params, None, "cpu", Silent(), longest=len(text()[0].tokens)),
    ):
        pass


@pytest.mark.parametrize(
    ("configuration", "advice"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
         "fsdp_offload_params: false"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "FSDP with fsdp_version: 2"),
    ],
)  # fmt: skip
def test_other_ways_to_split_are_refused(monkeypatch, configuration, advice):
    for name, value in configuration.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInputError, match=advice):
        Processes.start("cpu")


@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"precision": "bfloat16"}),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {"activation_checkpointing": True}),
    ],
)
def test_a_recipe_must_not_contradict_the_configuration(monkeypatch, configuration, options):
    for name, value in configuration.items():
        monkeypatch.setenv(name, value)
    ALONE.require_as_configured(PARAMS.model_copy(update=options))
    with pytest.raises(BadInputError, match=next(iter(options))):
        ALONE.require_as_configured(PARAMS)


def test_one_process_has_nothing_to_split(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert not Processes.start("cpu").sharded
