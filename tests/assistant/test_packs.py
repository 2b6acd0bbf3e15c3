"""The packs that a person can choose from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_encoders import build_encoder

from edgekit.assistant.packs import Packs
from edgekit.encoder_pack import PackOptions, make_embedding_pack
from edgekit.errors import BadInputError
from edgekit.progress import Silent


def test_an_embedding_pack_is_never_offered_for_chatting(tmp_path: Path) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    own = tmp_path / "packs"
    (own / "words").mkdir(parents=True)
    targets, out = ["openvino-cpu"], own / "words"
    make_embedding_pack("tiny", model, "int8", targets, PackOptions(), out, Silent())
    packs = Packs(tmp_path, own)
    assert [p.kind for p in packs.all()] == ["embedding"]
    assert packs.best() is None
    assert not packs.any()  # so the first start still offers the demo pack
    with pytest.raises(BadInputError, match="Documents"):
        packs.add(str(own / "words"))
