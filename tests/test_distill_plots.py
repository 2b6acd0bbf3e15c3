"""What a training's report is drawn from is what it shows."""

import re

from edgekit.distill_plots import training_curves


def interval(value):
    return {"value": value, "low": None, "high": None}


def report(**more):
    return {"losses": [1.0, 0.8, 0.6, 0.5], "written_step": 4, **more}


def legends(svg):
    return set(re.findall(r"<!-- ([^<]+) -->", svg))


def test_losses_alone_are_one_panel():
    found = legends(training_curves(report()))
    assert "loss, nats per token" in found and "step" in found
    assert not {f for f in found if "held-out" in f or "gradient" in f}


def test_held_out_text_is_shown_by_domain_and_the_gradient_beside_it():
    evaluations = [
        {"step": step, "students": [
            {"all": interval(value), "domains": {"chat": interval(value), "code": interval(2)}}
        ]}
        for step, value in ((0, 1.0), (2, 0.5), (4, 0.4))
    ]  # fmt: skip
    norms = [2.0, 1.0, 0.0, 0.5]  # a logarithm of nothing is not drawn
    found = legends(training_curves(report(evaluations=evaluations, gradient_norms=norms)))
    assert {"chat", "code", "all", "what was written"} <= found
    assert {"held-out KL, nats per token", "norm of the gradient, unclipped"} <= found


def test_a_training_of_one_step_can_be_drawn():
    assert "<svg" in training_curves({"losses": [0.1], "written_step": 1})
