"""Packs and archives: intact or refused, and the same bytes for the same content."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.archive import archive_pack, extract_archive
from edgekit.errors import BadInputError
from edgekit.manifest import (
    Lineage,
    Manifest,
    Student,
    TargetResult,
    Teacher,
    Variant,
    json_schema,
    read_manifest,
)
from edgekit.pack import check_path, copy_variant, open_pack, verify_pack, write_manifest
from edgekit.progress import Silent

P = Silent()


def make_pack(root: Path, contents: dict[str, bytes]) -> Path:
    variant, pack = root / "variant", root / "pack"
    for name, content in contents.items():
        (variant / name).parent.mkdir(parents=True, exist_ok=True)
        (variant / name).write_bytes(content)
    pack.mkdir()
    files = copy_variant(variant, pack, "sparse", P)
    manifest = Manifest(
        name="tiny", version="1.0.0", teacher=Teacher(name="t", digest="d"),
        student=Student(architecture="mixtral", parameters=10, active_parameters=5,
                        context_length=8, scheme="int8"),
        lineage=Lineage(recipe_digest="0" * 64),
        variants=[Variant(id="sparse", weights_file="weights.safetensors",
                          targets=[TargetResult(target="onnx-cpu")], memory_estimate_bytes=1,
                          files=files)],
    )  # fmt: skip
    write_manifest(pack, manifest)
    return pack


CONTENTS = {"weights.safetensors": b"w" * 5000, "config.json": b"{}", "openvino/m.xml": b"<net/>"}


@pytest.fixture
def pack(tmp_path):
    return make_pack(tmp_path, CONTENTS)


def test_an_intact_pack_verifies(pack):
    assert verify_pack(pack, P).name == "tiny"
    assert open_pack(pack, "onnx-cpu", P) == pack / "variants/sparse"


V = "variants/sparse/"


def edit(pack: Path, change) -> None:
    values = json.loads((pack / "pack.json").read_text())
    change(values)
    (pack / "pack.json").write_text(json.dumps(values))


def files(values):
    return values["variants"][0]["files"]


DAMAGE = {
    "a flipped byte": (
        lambda p: (p / V / "config.json").write_bytes(b"[]"), "config.json.*content",
    ),
    "a truncated file": (lambda p: os.truncate(p / V / "weights.safetensors", 99), "has 99 bytes"),
    "a longer file": (lambda p: (p / V / "config.json").write_bytes(b"{} "), "has 3 bytes"),
    "a missing file": (lambda p: (p / V / "openvino/m.xml").unlink(), "m.xml: missing"),
    "an extra file": (lambda p: (p / V / "evil.so").write_bytes(b""), "evil.so: not part"),
    "an extra file at the top": (lambda p: (p / "run.sh").write_bytes(b""), "run.sh: not part"),
    "a linked file": (
        lambda p: (
            (p / V / "config.json").unlink(), (p / V / "config.json").symlink_to("/dev/null")
        ),
        "config.json: a link",
    ),
    "a linked directory": (lambda p: (p / "extra").symlink_to("/dev"), "extra: a link"),
    "a pipe": (
        lambda p: ((p / V / "config.json").unlink(), os.mkfifo(p / V / "config.json")),
        "not a regular file",
    ),
    "no manifest": (lambda p: (p / "pack.json").unlink(), "pack.json is missing"),
    "a manifest that is not JSON": (lambda p: (p / "pack.json").write_text("{"), "not valid JSON"),
    "an unknown key": (lambda p: edit(p, lambda v: v.update(evil=1)), "evil"),
    "a missing key": (lambda p: edit(p, lambda v: v.pop("student")), "student"),
    "a newer schema": (
        lambda p: edit(p, lambda v: v.update(schema_version=9)), "version 9 is newer",
    ),
    "an escaping path": (
        lambda p: edit(p, lambda v: files(v)[0].update(path="../../etc/passwd")), "not allowed",
    ),
    "an absolute path": (
        lambda p: edit(p, lambda v: files(v)[0].update(path="/etc/passwd")), "not allowed",
    ),
    "a Windows path": (
        lambda p: edit(p, lambda v: files(v)[0].update(path="C:\\x")), "not allowed",
    ),
    "a file listed twice": (
        lambda p: edit(p, lambda v: files(v).append(files(v)[0])), "listed twice",
    ),
    "a huge size": (
        lambda p: edit(p, lambda v: files(v)[0].update(size=1 << 60)), "size",
    ),
    "no weights": (
        lambda p: edit(p, lambda v: v["variants"][0].update(weights_file="x")), "weights file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_pack_is_refused_by_name(pack, kind):
    damage, sentence = DAMAGE[kind]
    damage(pack)
    with pytest.raises(BadInputError, match=sentence):
        verify_pack(pack, P)


def test_chat_opens_a_damaged_pack_only_when_told(pack):
    (pack / V / "config.json").write_bytes(b"[]")
    with pytest.raises(BadInputError, match="content does not match"):
        open_pack(pack, "onnx-cpu", P)
    assert open_pack(pack, "onnx-cpu", P, allow_damaged=True).is_dir()


def test_a_target_that_the_pack_lacks_is_named(pack):
    with pytest.raises(BadInputError, match=r"no variant for openvino-npu.*runs on onnx-cpu"):
        open_pack(pack, "openvino-npu", P)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "/a", "a//b", "a/", "a\\b", "c:x", "nul", "NUL.txt", "aux/x", "a.",
     "a ", "a\n", "com1.bin"],
)  # fmt: skip
def test_paths_that_some_system_cannot_hold_are_refused(name):
    with pytest.raises(BadInputError, match="not allowed"):
        check_path(name, "pack.json")


def test_the_published_schema_is_current():
    published = Path(__file__).parent.parent / "edgekit/data/pack.schema.json"
    assert json.loads(published.read_text()) == json_schema()


names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,6})?", fullmatch=True).filter(
    lambda n: not any(p in ("con", "aux", "nul", "prn") for p in n.split("/"))
)


@settings(max_examples=25, deadline=None)
@given(extra=st.dictionaries(names, st.binary(max_size=300), max_size=4))
def test_an_archive_gives_the_pack_back(tmp_path_factory, extra):
    root = tmp_path_factory.mktemp("round")
    clean = {k: v for k, v in extra.items() if not any(o.startswith(k + "/") for o in extra)}
    pack = make_pack(root, {"weights.safetensors": b"w", **clean})
    archive_pack(pack, root / "p.tar", P)
    extract_archive(root / "p.tar", root / "back", P)
    for file in (f for f in pack.rglob("*") if f.is_file()):
        assert (root / "back" / file.relative_to(pack)).read_bytes() == file.read_bytes()


def test_an_archive_does_not_depend_on_times_or_permissions(tmp_path, pack):
    archive_pack(pack, tmp_path / "a.tar", P)
    for file in pack.rglob("*"):
        os.utime(file, (1, 1))
    (pack / "pack.json").chmod(0o600)
    archive_pack(pack, tmp_path / "b.tar", P)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_damaged_pack_is_not_archived(tmp_path, pack):
    (pack / V / "config.json").unlink()
    with pytest.raises(BadInputError, match="missing"):
        archive_pack(pack, tmp_path / "a.tar", P)
    assert not list(tmp_path.glob("a.tar*"))


def rewritten(pack: Path, out: Path, change) -> Path:
    """The archive of ``pack`` with its members passed through ``change``."""
    archive_pack(pack, out.with_suffix(".good"), P)
    with tarfile.open(out.with_suffix(".good")) as source, tarfile.open(out, "w") as sink:
        members = [(m, source.extractfile(m).read()) for m in source]
        for info, content in change(members):
            sink.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return out


def member(name, kind=tarfile.REGTYPE, content=b"x", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(content) * (kind == tarfile.REGTYPE), link
    return info, content


EVIL = {
    "escape": lambda m: [*m, member("../x")],
    "absolute": lambda m: [*m, member("/abs/x")],
    "symlink": lambda m: [*m, member(V + "l", tarfile.SYMTYPE, link="/etc/passwd")],
    "hardlink": lambda m: [*m, member(V + "l", tarfile.LNKTYPE, link="pack.json")],
    "device": lambda m: [*m, member(V + "d", tarfile.CHRTYPE)],
    "unlisted": lambda m: [*m, member(V + "new")],
    "duplicate": lambda m: [*m, m[-1]],
    "wrong size": lambda m: [*m[:-1], member(m[-1][0].name, content=b"other")],
    "missing": lambda m: m[:-1],
    "no manifest first": lambda m: m[1:],
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_malicious_archive_is_refused_and_nothing_is_left(tmp_path, pack, kind):
    file = rewritten(pack, tmp_path / "evil.tar", EVIL[kind])
    with pytest.raises(BadInputError):
        extract_archive(file, tmp_path / "out", P)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_truncated_archive_is_refused(tmp_path, pack, keep):
    archive_pack(pack, tmp_path / "a.tar", P)
    os.truncate(tmp_path / "a.tar", keep)
    with pytest.raises(BadInputError):
        extract_archive(tmp_path / "a.tar", tmp_path / "out", P)
    assert not (tmp_path / "out").exists()


def test_a_manifest_is_read_back_as_it_was_written(pack):
    text = (pack / "pack.json").read_text()
    assert read_manifest(pack).to_json() == text
