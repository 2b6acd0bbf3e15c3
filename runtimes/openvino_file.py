"""Write an OpenVINO model as IR over the weights file in place.

OpenVINO's serializer gives the topology; its constants' offsets are then pointed into
``weights.safetensors``, which serves as the IR's ``.bin``.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import openvino as ov

from edgekit.errors import EdgekitError
from edgekit.runtimes.openvino_constants import ConstantPool
from edgekit.scheme import CONSTANTS

_CONST = re.compile(r'<layer id="\d+" name="([^"]*)" type="Const"[^>]*>\s*<data [^>]*>')
_LAYER = re.compile(r'<layer id="(\d+)" name="[^"]*" type="(?!Parameter)')
_OFFSET = re.compile(r' offset="\d+"')


def write_ir(model: ov.Model, pool: ConstantPool, graph: Path) -> None:
    """Write ``graph`` (XML) and fill the constants tensor of the weights file of ``pool``."""
    xml = _serialize(model)
    places, content = pool.place_small()
    text = _point_into_file(xml, pool, places)
    room = pool.info(CONSTANTS)
    graph.parent.mkdir(exist_ok=True)
    graph.write_text(text, encoding="utf-8")
    with pool.path.open("r+b") as file:
        file.seek(room.offset)
        file.write(content.ljust(room.nbytes, b"\0"))


def _serialize(model: ov.Model) -> str:
    """The topology as XML; the weights that the serializer also writes go nowhere."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.xml"
        ov.serialize(model, str(path), os.devnull)
        return path.read_text(encoding="utf-8")


def _point_into_file(xml: str, pool: ConstantPool, places: dict[str, int]) -> str:
    def point(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in pool.offsets:
            raise EdgekitError(f"constant {name!r} was not made by the graph writer")
        offset = pool.offsets[name]
        if offset < 0:
            offset = places[name.partition("#")[0]]
        return _OFFSET.sub(f' offset="{offset}"', match.group(0), count=1)

    # OpenVINO numbers its nodes per process; by position the same model has the same bytes
    return _LAYER.sub(r'<layer id="\1" name="node_\1" type="', _CONST.sub(point, xml))
