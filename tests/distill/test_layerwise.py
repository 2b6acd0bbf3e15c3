"""A model that runs layer by layer says what it says as a whole."""

import numpy as np
import pytest
import torch
from tiny_families import FAMILY_OPTIONS

from edgekit.distill.layerwise import Layerwise
from edgekit.distill.open_model import open_model

IDS = torch.from_numpy(np.random.default_rng(2).integers(3, 500, (2, 40)))


@pytest.mark.parametrize("family", FAMILY_OPTIONS)
def test_one_layer_in_memory_at_a_time_gives_the_logits_of_the_whole(tiny_model, family):
    directory = tiny_model(family)
    with open_model(directory) as opened, torch.inference_mode():
        expected = opened.model(IDS, use_cache=False).logits
    with open_model(directory, load=False) as opened:
        layerwise = Layerwise(opened)
        hidden = layerwise.embed(IDS)
        assert all(p.is_meta for p in opened.model.parameters())
        for number in range(len(opened.layers)):
            opened.load_layer(number)
            hidden = layerwise.run(number, hidden)
            opened.drop_layer(number)
        opened.load_rest()
        torch.testing.assert_close(layerwise.logits(hidden), expected, atol=1e-6, rtol=1e-6)


def test_the_model_runs_as_before_afterwards(tiny_mixtral):
    with open_model(tiny_mixtral) as opened, torch.inference_mode():
        before = opened.model(IDS, use_cache=False).logits
        layerwise = Layerwise(opened)
        layerwise.run(1, layerwise.run(0, layerwise.embed(IDS)))
        assert torch.equal(opened.model(IDS, use_cache=False).logits, before)
