"""Embedding models: both graphs against transformers, batches, length, prefixes, privacy."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import FAMILIES, TEXTS, build_encoder, reference_model

from edgekit.encoder_checkpoint import EncoderCheckpoint
from edgekit.encoder_pack import SCHEMES
from edgekit.encoder_reference import activated, reference_vectors
from edgekit.encoder_text import PassageTokenizer
from edgekit.errors import BadInputError, EdgekitError, MissingRuntimeError
from edgekit.manifest import Embedding
from edgekit.progress import Silent
from edgekit.quantize.write import write_weights
from edgekit.runtimes.embedding import (
    BATCH_TEXTS,
    BATCH_TOKENS,
    PackEmbedder,
    batches,
    padded,
)
from edgekit.runtimes.embedding_sessions import OnnxEmbedding, OpenVINOEmbedding, open_session
from edgekit.runtimes.encoder_onnx import write_onnx_encoder
from edgekit.runtimes.encoder_openvino import write_openvino_encoder
from edgekit.scheme import VARIANT_WEIGHTS, dequantize
from edgekit.tensorfile import TensorFile

MEAN = Embedding(dim=64, max_tokens=48, pooling="mean")
EXACT = {"openvino": lambda d: OpenVINOEmbedding(d, exact=True), "onnx": OnnxEmbedding}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """``compiled("bert", "cls", "int8")``: the checkpoint, and a variant with exact activations."""
    cache = {}

    def make(family, pooling="mean", scheme="none", **options):
        key = (family, pooling, scheme, *options.items())
        if key not in cache:
            model = build_encoder(tmp_path_factory.mktemp("model"), family, pooling, **options)
            variant = tmp_path_factory.mktemp("variant")
            with EncoderCheckpoint(model) as checkpoint:
                packing = SCHEMES[scheme]
                write_weights(checkpoint, packing, variant / VARIANT_WEIGHTS, Silent())
                parts = (variant, checkpoint.architecture, packing, pooling)
                write_openvino_encoder(*parts)
                write_onnx_encoder(*parts, accuracy_level=1)
            cache[key] = model, variant
        return cache[key]

    return make


def stored_weights(model, variant, scheme):
    """The transformers model with the weights that the variant's file stands for."""
    import torch

    with EncoderCheckpoint(model) as checkpoint, TensorFile(variant / VARIANT_WEIGHTS) as file:
        family, options = checkpoint.config["model_type"], dict(checkpoint.config)
        reference = reference_model(family, hidden_act=options["hidden_act"])
        values = {}
        for spec in checkpoint.architecture.tensors():
            packing = SCHEMES[scheme].packing(spec)
            stored = dequantize(file, spec.name, packing) if packing else file.float32(spec.name)
            values[spec.name] = torch.from_numpy(np.array(stored))
    missing, unexpected = reference.load_state_dict(values, strict=False)
    assert not unexpected and not missing
    return reference


def pooled(reference, tokens, pooling):
    """Vectors of each text alone, without padding."""
    import torch

    rows = []
    with torch.no_grad():
        for text in tokens:
            states = reference(torch.tensor([text])).last_hidden_state[0]
            vector = states[0] if pooling == "cls" else states.mean(dim=0)
            rows.append((vector / vector.norm()).numpy())
    return np.stack(rows)


def tokens_of(model, max_tokens=48):
    tokens = PassageTokenizer(model, max_tokens).encode(TEXTS)
    assert len({len(t) for t in tokens}) > 2  # so that a batch of them is padded
    return tokens


@pytest.mark.parametrize("runtime", sorted(EXACT))
@pytest.mark.parametrize("scheme", ["none", "int8"])
@pytest.mark.parametrize(("family", "pooling"), [(f, "mean") for f in FAMILIES] + [("bert", "cls")])
def test_a_padded_batch_has_the_vectors_that_transformers_gives_each_text_alone(
    compiled, family, pooling, scheme, runtime
):
    model, variant = compiled(family, pooling, scheme)
    tokens = tokens_of(model)
    expected = pooled(stored_weights(model, variant, scheme), tokens, pooling)
    found = EXACT[runtime](variant).run(*padded(tokens))
    assert np.abs(found - expected).max() < 1e-4
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_the_numpy_reference_is_transformers(compiled, activation):
    model, _ = compiled("xlm-roberta", hidden_act=activation)
    tokens = tokens_of(model)
    reference = reference_model("xlm-roberta", hidden_act=activation)
    with EncoderCheckpoint(model) as checkpoint:
        found = reference_vectors(checkpoint, tokens, Silent())
    assert np.abs(found - pooled(reference, tokens, "mean")).max() < 2e-6


def test_gelu_is_exact_where_it_bends():
    import torch

    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    for kind, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate).numpy()
        assert np.abs(activated(x, kind) - expected).max() < 1e-6


def test_the_file_keeps_positions_and_the_longest_text_uses_the_last(compiled):
    model, variant = compiled("roberta")
    reference = stored_weights(model, variant, "none")
    longest = [[0, *[5 + i % 90 for i in range(46)], 2]]
    for make in EXACT.values():
        found = make(variant).run(*padded(longest))
        assert np.abs(found - pooled(reference, longest, "mean")).max() < 1e-4


def test_attention_products_and_norms_are_the_runtimes_own(compiled):
    _, variant = compiled("bert", scheme="int8")
    graph = OpenVINOEmbedding(variant, exact=True).compiled.get_runtime_model()
    kinds = Counter(str(o.get_rt_info()["layerType"].astype(str)) for o in graph.get_ordered_ops())
    # without a cache OpenVINO's processor plugin makes one Subgraph of each attention
    assert kinds["Subgraph"] + kinds["ScaledDotProductAttention"] == 2
    assert kinds["FullyConnected"] == 12 and kinds["MVN"] == 5
    assert not kinds["Softmax"] and not kinds["MatMul"]
    model = onnx.load(str(variant / "model.onnx"), load_external_data=False)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MultiHeadAttention"] == 2 and kinds["SkipLayerNormalization"] == 4
    assert kinds["MatMulNBits"] == 12 and kinds["GatherBlockQuantized"] == 1
    assert kinds["MatMul"] == 0


def test_both_graphs_read_the_same_file(compiled):
    _, variant = compiled("bert", scheme="int8")
    size = (variant / VARIANT_WEIGHTS).stat().st_size
    others = sum(f.stat().st_size for f in variant.rglob("*") if f.is_file()) - size
    assert others < size  # topology alone, though the model is tiny
    model = onnx.load(str(variant / "model.onnx"), load_external_data=False)
    places = [e for t in model.graph.initializer for e in t.external_data if e.key == "location"]
    assert {e.value for e in places} == {VARIANT_WEIGHTS}


class Spy:
    """A session that keeps what it was given, and gives the row sums of the ids as vectors."""

    def __init__(self):
        self.shapes, self.rows = [], []

    def run(self, tokens, mask):
        self.shapes.append(tokens.shape)
        self.rows += [list(t[: int(m.sum())]) for t, m in zip(tokens, mask)]
        return np.repeat((tokens * mask).sum(axis=1, keepdims=True), 64, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def tokenizer_model(tmp_path_factory):
    return build_encoder(tmp_path_factory.mktemp("model"), "bert")


def spied(model, **settings):
    spy = Spy()
    chosen = MEAN.model_copy(update=settings)
    return spy, PackEmbedder(spy, PassageTokenizer(model, chosen.max_tokens), chosen, "id")


def test_vectors_come_in_the_order_of_the_texts(tokenizer_model):
    _, embedder = spied(tokenizer_model)
    texts = [TEXTS[i % 5] * (1 + i % 3) for i in range(150)]
    alone = [embedder.embed([text])[0, 0] for text in texts]
    assert (embedder.embed(texts)[:, 0] == alone).all()
    assert embedder.embed([]).shape == (0, 64)


def test_queries_and_passages_get_their_own_prefix(tokenizer_model):
    _, plain = spied(tokenizer_model)
    spy, embedder = spied(tokenizer_model, query_prefix="query: ", passage_prefix="passage: ")
    assert (embedder.embed(["fox"], "query") == plain.embed(["query: fox"])).all()
    assert (embedder.embed(["fox"], "passage") == plain.embed(["passage: fox"])).all()
    assert embedder.count_tokens("fox") == len(spy.rows[-1])


def test_a_long_text_is_cut_and_keeps_the_special_tokens_around_it(tokenizer_model):
    spy, embedder = spied(tokenizer_model, max_tokens=12)
    text = TEXTS[0] * 5
    embedder.embed([text, "x"])
    cut, short = spy.rows
    whole = PassageTokenizer(tokenizer_model, 10_000).encode([text])[0]
    assert cut == [*whole[:11], whole[-1]] and len(cut) == 12
    assert short[0] == whole[0] and short[-1] == whole[-1] and len(short) == 3
    assert embedder.count_tokens(text) == len(whole) > 12


def test_special_tokens_in_a_text_are_text_and_half_characters_do_no_harm(tokenizer_model):
    tokenizer = PassageTokenizer(tokenizer_model, 48)
    marks = tokenizer.encode(["x"])[0]
    (tokens,) = tokenizer.encode(["a[SEP]b[CLS]"])
    assert [t for t in tokens if t in (marks[0], marks[-1])] == [marks[0], marks[-1]]
    assert tokenizer.encode(["a\ud83d"]) == tokenizer.encode(["a\ufffd"])


def test_a_tokenizer_without_room_for_text_is_refused(tokenizer_model, tmp_path):
    with pytest.raises(BadInputError, match="2 special tokens leave no room in 2"):
        PassageTokenizer(tokenizer_model, 2)
    with pytest.raises(BadInputError, match=r"tokenizer\.json is missing"):
        PassageTokenizer(tmp_path, 48)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match="not a tokenizer"):
        PassageTokenizer(tmp_path, 48)


@given(st.lists(st.integers(0, 9000), max_size=200))
def test_batches_hold_every_text_once_and_stay_small(lengths):
    found = list(batches(lengths))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[i] for i in batch)
        assert len(batch) <= BATCH_TEXTS
        assert len(batch) == 1 or len(batch) * longest <= BATCH_TOKENS


def test_a_closed_embedder_says_so(tokenizer_model):
    _, embedder = spied(tokenizer_model)
    embedder.close()
    with pytest.raises(EdgekitError, match="is closed"):
        embedder.embed(["x"])


def test_a_session_that_cannot_be_opened_says_what_to_do(compiled, tmp_path):
    _, variant = compiled("bert")
    with pytest.raises(MissingRuntimeError, match="device NPU is not on this machine"):
        open_session(variant, "openvino-npu")
    with pytest.raises(BadInputError, match="target 'cpu' is not known"):
        open_session(variant, "cpu")
    for target in ("openvino-cpu", "onnx-cpu"):
        with pytest.raises(BadInputError, match=r"is missing; make the embedding pack again"):
            open_session(tmp_path, target)
    (tmp_path / "model.onnx").write_bytes(b"no")
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "openvino_model.xml").write_text("no")
    (tmp_path / VARIANT_WEIGHTS).write_bytes(b"no")
    for target in ("openvino-cpu", "onnx-cpu"):
        with pytest.raises(BadInputError, match=r"cannot load it .*verify the pack"):
            open_session(tmp_path, target)


SEND_NOTHING = """
import sys
from pathlib import Path
from edgekit.runtimes.embedding_sessions import open_session
from edgekit.runtimes.devices import list_devices
list_devices()
for target in ("openvino-cpu", "onnx-cpu"):
    open_session(Path(sys.argv[1]), target)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


def test_runtimes_leave_no_device_id_and_no_statistics_behind(compiled, tmp_path):
    _, variant = compiled("bert")
    places = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA")
    path = Path(sys.executable).parent
    environment = {"PATH": f"{path}:/usr/bin:/bin", **dict.fromkeys(places, str(tmp_path))}
    command = [sys.executable, "-c", SEND_NOTHING, str(variant)]
    subprocess.run(command, env=environment, check=True, cwd=Path(__file__).parents[2])
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
