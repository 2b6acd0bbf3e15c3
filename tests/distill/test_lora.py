"""Adapters begin at the student, learn in its place, and become part of its matrices."""

import numpy as np
import pytest
import torch
from training_runs import captured, healed, text

from edgekit.checkpoint import Checkpoint
from edgekit.distill.lora import Adapters
from edgekit.distill.open_model import open_model
from edgekit.distill.rows import hidden_states
from edgekit.distill.trainable import trainable_parameters
from edgekit.errors import BadInputError
from edgekit.progress import Silent


@pytest.fixture(scope="module")
def cache(tiny_mixtral, tmp_path_factory):
    return captured(tiny_mixtral, tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def student(tiny_model):
    return tiny_model("mixtral", seed=3)


@pytest.mark.parametrize("parts", [("attention",), ("experts",), ("router", "mlp", "attention")])
def test_adapters_begin_at_the_student_and_become_part_of_it(tiny_model, cache, tmp_path, parts):
    student = tiny_model("qwen2_moe", seed=3)
    options = {"lora_rank": 4, "trainable": parts, "learning_rate": 1e-2}
    with open_model(student) as opened:
        before = hidden_states(opened, text(1)).detach()
        trained = trainable_parameters(opened, parts)
        adapters = Adapters(opened, trained, 4, 8.0, 0)
        assert torch.equal(hidden_states(opened, text(1)), before)
        with torch.no_grad():
            for name, parameter in adapters.parameters.items():
                if name.endswith("lora_b"):
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        changed = hidden_states(opened, text(1))
        assert not torch.allclose(changed, before, atol=1e-2)
        adapters.merge()
        torch.testing.assert_close(hidden_states(opened, text(1)), changed, atol=1e-4, rtol=1e-4)
    report, weights = healed(student, cache, tmp_path / "out", **options)
    assert report.trained_parameters < 0.5 * report.parameters
    assert report.losses[-1] < report.losses[0]
    changed_roles = set()
    with Checkpoint(student) as checkpoint:
        for spec in checkpoint.specs:
            difference = weights[spec.name] - checkpoint.float32(spec.name)
            if difference.any():
                changed_roles.add(spec.role)
                if spec.role in ("linear", "expert"):
                    assert np.linalg.matrix_rank(difference, tol=1e-4) <= 4, spec.name
    assert {"attention": "linear", "experts": "expert", "router": "router"}[
        parts[0]
    ] in changed_roles


@pytest.mark.parametrize("family", ["phi3", "deepseek_v3", "qwen3_next", "gemma4_text", "dbrx"])
def test_a_written_student_says_what_its_adapters_said(tiny_model, tmp_path, family):
    from edgekit.distill.write_student import write_student

    with open_model(tiny_model(family)) as opened:
        parts = ("attention", "mlp", "experts")
        trained = trainable_parameters(opened, parts)
        adapters = Adapters(opened, trained, 4, 8.0, 0)
        with torch.no_grad():
            for parameter in adapters.parameters.values():
                parameter += 0.02 * torch.randn_like(parameter)
            expected = hidden_states(opened, text(1))
            adapters.merge()
            write_student(opened, tmp_path, None, Silent())
    with open_model(tmp_path) as opened, torch.inference_mode():
        torch.testing.assert_close(hidden_states(opened, text(1)), expected, atol=2e-3, rtol=2e-3)


def test_adapters_without_a_place_are_refused(student, cache, tmp_path):
    with pytest.raises(BadInputError, match=r"lora_rank.*attention"):
        healed(student, cache, tmp_path / "out", lora_rank=4, trainable=("norms",))


def test_adapters_train_alike_in_recomputed_layers(student, cache, tmp_path):
    options = {"lora_rank": 4, "precision": "bfloat16"}
    plain, weights = healed(student, cache, tmp_path / "plain", **options)
    twice, again = healed(
        student, cache, tmp_path / "twice", activation_checkpointing=True, **options
    )
    assert twice.losses == pytest.approx(plain.losses, abs=1e-3)
    for name, expected in weights.items():
        np.testing.assert_allclose(again[name], expected, atol=2e-3, err_msg=name)
