"""Where the files of a compiled variant lie.

A variant is a directory. One with nested sizes (:mod:`edgekit.nested`) holds a folder for each
smaller size, which stands for a variant itself: whoever is given its path loads that size.

    variant/
      weights.safetensors  tokenizer.json …  genai_config.json   of every size
      config.json  openvino/openvino_model.xml  model.onnx       all experts
      experts-6/
        config.json  openvino/openvino_model.xml                 the first six of each layer
      model-experts-6.onnx

ONNX graphs lie beside the weights because ONNX Runtime refuses external data above the graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit.scheme import VARIANT_WEIGHTS

OPENVINO_GRAPH = Path("openvino") / "openvino_model.xml"
ONNX_GRAPH = "model.onnx"
_FOLDER = re.compile(r"experts-([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class VariantFiles:
    """``directory`` has a size's config and OpenVINO graph, ``shared`` what all sizes share."""

    directory: Path
    shared: Path

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.shared / VARIANT_WEIGHTS

    @property
    def openvino_graph(self) -> Path:
        """The OpenVINO IR."""
        return self.directory / OPENVINO_GRAPH

    @property
    def onnx_graph(self) -> Path:
        """The ONNX graph."""
        return self.onnx_beside(ONNX_GRAPH)

    def onnx_beside(self, name: str) -> Path:
        """The place of this size's ONNX graph that is called ``name`` where all experts are."""
        if self.shared == self.directory:
            return self.shared / name
        stem, _, ending = name.rpartition(".")
        return self.shared / f"{stem}-{self.directory.name}.{ending}"


def files_of(directory: Path) -> VariantFiles:
    """The files of a variant, or of a nested size if ``directory`` is its folder."""
    whole = directory.resolve()
    nested = (
        folder_size(whole) > 0
        and not (whole / VARIANT_WEIGHTS).is_file()
        and (whole.parent / VARIANT_WEIGHTS).is_file()
    )
    return VariantFiles(directory, whole.parent if nested else directory)


def size_folder(experts: int) -> str:
    """Name of the folder of a nested size."""
    return f"experts-{experts}"


def folder_size(folder: Path) -> int:
    """The number of experts that a folder's name says; 0 for any other name."""
    match = _FOLDER.fullmatch(folder.name)
    return int(match.group(1)) if match else 0


def size_directories(variant: Path) -> list[Path]:
    """The variant and the folders of its smaller sizes, the largest first."""
    found = [
        folder
        for folder in variant.glob("experts-*")
        if folder_size(folder) and (folder / "config.json").is_file()
    ]
    return [variant, *sorted(found, key=folder_size, reverse=True)]
