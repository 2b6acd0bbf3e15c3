"""Run a model a layer at a time, whatever its family.

transformers' own decoder prepares masks and positions as ever. Every layer's forward is replaced:
layers before the wanted one pass their input through, the wanted one is given the hidden states
that its caller kept and runs for real, and then the decoder is left. So only that layer has to have
its weights in memory; neither embedding, norm nor head is needed while a layer runs. Layers must
not share anything but the residual stream, which holds for every family that edgekit describes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.distill.open_model import OpenModel


class _Left(Exception):  # noqa: N818 - no error: the decoder has done what is wanted of it
    """Carries the result out of a decoder that would go on."""

    def __init__(self, result: Tensor) -> None:
        self.result = result


class Layerwise:
    """Runs parts of ``opened``; hidden states [B, T, H] have its precision and device."""

    def __init__(self, opened: OpenModel) -> None:
        self.opened = opened

    @torch.inference_mode()
    def embed(self, ids: Tensor) -> Tensor:
        """What the first layer reads for ``ids`` int64 [B, T].

        Where the embedding is not loaded, the rows of these tokens are read from the checkpoint.
        """

        def leave(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
            raise _Left(hidden)

        if not self.opened.decoder.get_input_embeddings().weight.is_meta:
            with _forwards(self.opened.layers, 0, leave):
                return self._decode(input_ids=ids)
        tokens, places = ids.unique(return_inverse=True)
        with _forwards(self.opened.layers, 0, leave), self._rows(tokens):
            return self._decode(input_ids=places)

    @torch.inference_mode()
    def run(self, number: int, hidden: Tensor) -> Tensor:
        """What layer ``number`` makes of ``hidden``; its weights have to be loaded."""
        forward = self.opened.layers[number].forward

        def stored(_: Tensor, *args: Any, **named: Any) -> Tensor:
            raise _Left(forward(hidden, *args, **named))

        with _forwards(self.opened.layers, number, stored):
            return self._decode(inputs_embeds=hidden)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """The logits [B, T, V] of the last layer's result; norm and head have to be loaded."""
        with _forwards(self.opened.layers, 0, lambda *_, **__: hidden):
            result: Tensor = self.opened.model(inputs_embeds=hidden, use_cache=False).logits
        return result

    @torch.inference_mode()
    def normed(self, hidden: Tensor) -> Tensor:
        """What the head reads of the last layer's result; the last norm has to be loaded."""
        with _forwards(self.opened.layers, 0, lambda *_, **__: hidden):
            found = self.opened.decoder(inputs_embeds=hidden, use_cache=False)
        result: Tensor = found.last_hidden_state
        return result

    def _decode(self, **inputs: Tensor) -> Tensor:
        try:
            self.opened.decoder(**inputs, use_cache=False)
        except _Left as left:
            return left.result
        raise AssertionError("the decoder did not run the layer")

    @contextmanager
    def _rows(self, tokens: Tensor) -> Iterator[None]:
        """An embedding that has the rows of ``tokens`` [n] only, so n of its ids are valid."""
        opened = self.opened
        module = opened.decoder.get_input_embeddings()
        whole, padding = module.weight, module.padding_idx
        name = opened.architecture.embedding + ".weight"
        rows = torch.empty(len(tokens), opened.architecture.hidden_size, dtype=opened.dtype)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            stored = opened.checkpoint.float32(name, slice(token, token + 1))
            row.copy_(torch.from_numpy(stored[0]))
        module.weight = nn.Parameter(rows.to(opened.device), requires_grad=False)
        module.padding_idx = None  # only gradients know it, but it may be beyond the rows
        try:
            yield
        finally:
            module.weight, module.padding_idx = whole, padding


@contextmanager
def _forwards(layers: nn.ModuleList, number: int, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Call ``forward`` in the place of one layer's; all others give their input back."""
    replaced = [vars(layer).get("forward") for layer in layers]
    for index, layer in enumerate(layers):
        layer.forward = forward if index == number else _through
    try:
        yield
    finally:
        for layer, before in zip(layers, replaced, strict=True):
            del layer.forward
            if before is not None:
                layer.forward = before


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
