"""The safetensors reader and writer against the safetensors library, and against noise."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from edgekit import tensorfile
from edgekit.errors import BadInputError, EdgekitError
from edgekit.tensorfile import (
    DATA_ALIGNMENT,
    TensorFile,
    TensorFileWriter,
    TensorInfo,
    float32_to_bfloat16,
    read_header,
)

KINDS = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I32": np.int32, "I64": np.int64}
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensor = st.sampled_from(sorted(KINDS)).flatmap(
    lambda k: shapes.flatmap(lambda s: st.tuples(st.just(k), arrays.arrays(KINDS[k], s)))
)


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.text(min_size=1, max_size=12), tensor, min_size=1, max_size=4))
def test_what_is_written_is_what_safetensors_reads_and_the_other_way(tmp_path_factory, values):
    values.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    layout = [TensorInfo(n, kind, array.shape) for n, (kind, array) in values.items()]
    with TensorFileWriter(path, layout, {"a": "b"}) as writer:
        for name in reversed(list(values)):  # any order
            writer.write(name, values[name][1])
    read = load_file(path)
    assert read.keys() == values.keys()
    for name, (_, array) in values.items():
        np.testing.assert_array_equal(read[name], array)
    if values:
        offsets = [t.offset for t in read_header(path)[0].values()]
        assert min(offsets) % DATA_ALIGNMENT == 0
    theirs = path.with_name("y.safetensors")
    save_file({n: a for n, (_, a) in values.items()}, theirs)
    with TensorFile(theirs) as file:
        for name, (_, array) in values.items():
            np.testing.assert_array_equal(file.array(name), array)


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=200), length=st.integers(0, 220), header=st.booleans())
def test_noise_is_refused_and_never_a_crash(tmp_path_factory, noise, length, header):
    path = tmp_path_factory.mktemp("noise") / "x.safetensors"
    raw = length.to_bytes(8, "little") + noise
    if header:
        raw = (len(noise) + 2).to_bytes(8, "little") + b"{" + noise + b"}"
    path.write_bytes(raw)
    try:
        read_header(path)
    except BadInputError as error:
        assert str(path) in str(error)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=4)
    | st.sampled_from([*KINDS, 0, 1, 4, 8, -1, 2**63, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)  # fmt: skip
sizes = st.integers(0, 2**70)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*KINDS, "F32"]) | values,
        "shape": st.lists(sizes, max_size=80) | values,
        "data_offsets": st.lists(sizes, min_size=2, max_size=2) | values,
    }
)


@settings(max_examples=500, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=4), entries | values, max_size=3),
    metadata=st.none() | values,
    data=st.binary(max_size=16),
)
def test_a_header_of_any_json_is_refused_or_read(tmp_path_factory, header, metadata, data):
    path = tmp_path_factory.mktemp("hostile") / "x.safetensors"
    text = json.dumps({**header, **({"__metadata__": metadata} if metadata else {})}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        tensors, found = read_header(path)
    except BadInputError as error:
        assert str(path) in str(error)
    else:
        assert sum(info.nbytes for info in tensors.values()) == len(data)
        assert all(isinstance(value, str) for value in found.values())


@pytest.mark.parametrize("kind", ["header", "dtype", "data_offsets", "shape", "metadata"])
@pytest.mark.parametrize("depth", [900, 100_000])
def test_a_deeply_nested_header_is_refused(tmp_path, kind, depth):
    nested = "[" * depth + "]" * depth
    entry = {"dtype": '"F32"', "shape": "[0]", "data_offsets": "[0,0]", kind: nested}
    fields = ",".join(f'"{k}":{v}' for k, v in entry.items())
    text = {"header": nested, "metadata": f'{{"__metadata__":{{"a":{nested}}}}}'}.get(
        kind, f'{{"x":{{{fields}}}}}'
    )
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    with pytest.raises(BadInputError, match=r"x\.safetensors: "):
        read_header(path)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize(
    "part", [..., 1, (2, 3), slice(1, None, 2), (slice(None), slice(5, 40)), slice(0, 0)]
)
def test_float32_of_a_part_is_the_part_of_float32(tmp_path, monkeypatch, dtype, part):
    monkeypatch.setattr(tensorfile, "READ_BYTES", 100)  # several reads even of these
    values = np.random.default_rng(0).standard_normal((3, 41, 53)).astype(np.float32)
    stored = {"F16": np.float16, "F64": np.float64}.get(dtype, np.float32)
    with TensorFileWriter(tmp_path / "x", [TensorInfo("a", dtype, values.shape)]) as writer:
        writer.write("a", values.astype(stored))
    expected = values.astype(stored).astype(np.float32)
    if dtype == "BF16":
        expected = torch.from_numpy(values).bfloat16().float().numpy()
    with TensorFile(tmp_path / "x") as file:
        before = file.array("a")
        found = file.float32("a", part)
        np.testing.assert_array_equal(found, expected[part])
        assert found.shape == expected[part].shape
        found += 1  # a copy: neither the file nor a view of it changes
        np.testing.assert_array_equal(file.float32("a"), expected)
        assert before.size == values.size and before.tobytes() == file.array("a").tobytes()


def test_rows_written_by_several_threads_make_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "WRITEBACK_BYTES", 1000)
    values = np.arange(97 * 31, dtype=np.float32).reshape(97, 31)
    layout = [TensorInfo("a", "F32", (3,)), TensorInfo("b", "F32", values.shape)]
    with TensorFileWriter(tmp_path / "x", layout) as writer, ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(writer.write, "b", values[i : i + 5], i) for i in range(0, 97, 5)]
        writes.append(pool.submit(writer.write, "a", np.ones(3, np.float32)))
        for write in writes:
            write.result()
    np.testing.assert_array_equal(load_file(tmp_path / "x")["b"], values)


def test_rows_that_are_missing_or_outside_are_a_defect(tmp_path):
    layout = [TensorInfo("a", "F32", (4, 2))]
    with (
        pytest.raises(EdgekitError, match="1 tensors not written: a"),
        TensorFileWriter(tmp_path / "x", layout) as writer,
    ):
        writer.write("a", np.zeros((3, 2), np.float32), 0)
    for first in (2, 5):
        with (
            pytest.raises(EdgekitError, match=rf"at row {first}, the layout says"),
            TensorFileWriter(tmp_path / "x", layout) as writer,
        ):
            writer.write("a", np.zeros((3, 2), np.float32), first)


@settings(max_examples=200, deadline=None)
@given(values=arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32)))
def test_bfloat16_rounds_as_torch_does(values):
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    found = float32_to_bfloat16(values)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(found[number], expected[number])
    assert np.isnan((found[~number].astype(np.uint32) << 16).view(np.float32)).all()


def test_a_file_with_a_tensor_forgotten_or_misshapen_is_a_defect(tmp_path):
    layout = [TensorInfo("a", "F32", (2,)), TensorInfo("b", "F32", (2,))]
    with (
        pytest.raises(EdgekitError, match="1 tensors not written: b"),
        TensorFileWriter(tmp_path / "x", layout) as writer,
    ):
        writer.write("a", np.zeros(2, np.float32))
    with (
        pytest.raises(EdgekitError, match=r"a is float32\[3\]"),
        TensorFileWriter(tmp_path / "x", layout) as writer,
    ):
        writer.write("a", np.zeros(3, np.float32))
    with pytest.raises(EdgekitError, match="twice"):
        TensorFileWriter(tmp_path / "x", [layout[0], layout[0]])
