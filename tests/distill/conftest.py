"""Fixtures of caches."""

import pytest
from captures import make_text

from edgekit.distill import cache_write


@pytest.fixture
def sequences(tmp_path):
    """A directory with short texts."""
    return make_text(tmp_path / "sequences")


@pytest.fixture
def small_shards(monkeypatch):
    """Caches of short texts have several shards."""
    monkeypatch.setattr(cache_write, "SHARD_TOKENS", 64)
