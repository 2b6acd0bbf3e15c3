"""Configs that lie: any value is understood by ``describe`` or refused in a sentence."""

import copy

import pytest
from tiny_families import COMMON, FAMILY_OPTIONS

from edgekit.describe import describe
from edgekit.errors import BadInputError

JUNK = [None, True, 0, -1, 1, 7, 3.5, float("nan"), float("inf"), 10**400, 2**40, "", "x", [], [0],
        ["x"], {}, {"x": 1}, {"rope_type": "x"}]  # fmt: skip


def paths(config, prefix=()):
    for name, value in config.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, name))


@pytest.mark.parametrize("family", sorted(FAMILY_OPTIONS))
def test_any_value_is_understood_or_refused_in_a_sentence(family):
    from transformers import AutoConfig

    full = AutoConfig.for_model(family, **{**COMMON, **FAMILY_OPTIONS[family]}).to_dict()
    for path in paths(full):
        for junk in JUNK:
            config = copy.deepcopy(full)
            inner = config
            for step in path[:-1]:
                inner = inner[step]
            inner[path[-1]] = junk
            try:
                describe(config)
            except BadInputError as error:
                assert "\n" not in str(error) and len(str(error)) < 400
