"""One pack for machines of several sizes: what it holds, what it says, and what answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_nested import nested_source

import edgekit.cli.bench
import edgekit.doctor
import edgekit.evaluate
import edgekit.runtimes.devices
from edgekit.archive import archive_pack, extract_archive
from edgekit.checkpoint import Checkpoint, read_config
from edgekit.cli.main import main
from edgekit.describe import describe
from edgekit.distill.densify import DenseOptions, densify
from edgekit.distill.shrink import shrink
from edgekit.distill.teacher import teacher_logits
from edgekit.errors import BadInputError
from edgekit.evaluate import evaluate
from edgekit.manifest import Speed, parse_manifest, read_manifest
from edgekit.nested import prefix_config
from edgekit.pack import verify_pack
from edgekit.pack_sizes import choose_size, fitting_sizes
from edgekit.pipeline import build
from edgekit.plan import make_plan
from edgekit.progress import Silent
from edgekit.quantize.write import quantize
from edgekit.recipe import ShrinkSection, parse_recipe
from edgekit.runtimes.compile import compile_variant
from edgekit.runtimes.engine import Sampling, load_engine
from edgekit.scheme import Scheme
from edgekit.sequences import FILE_NAME, read_sequences
from edgekit.tensorfile import read_header

EIGHT = {"num_local_experts": 8, "num_experts": 8, "max_position_embeddings": 128}
SIZES = [8, 6, 4]
SHARES = "1.0,0.75,0.5"
VARIANT = "variants/sparse"
FIXED = Speed(
    tokens_per_second=9.0, time_to_first_token_ms=1.0, prompt_tokens=1, peak_memory_bytes=1
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads wait for each other longer than matrices this small take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher(tiny_model):
    return tiny_model("mixtral", **EIGHT)


def recipe(teacher, **changes):
    return parse_recipe(
        {
            "teacher": {"model": str(teacher)},
            "data": {"tokens": 256, "held_out_tokens": 96, "sequence_length": 32,
                     "domains": ["chat", "code"]},
            "shrink": {"keep": 1.0, "nested": [1.0, 0.75, 0.5]},
            "distill": {"steps": 3, "batch_tokens": 32, "top_k": 8},
            "quantize": {"scheme": "int4-g32"},
            "targets": [{"name": "openvino-cpu"}],
            "pack": {"name": "tiny"},
            **changes,
        },
        "r.toml",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """A finished build of three sizes."""
    out = tmp_path_factory.mktemp("nested") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edgekit.evaluate, "measure_speed", lambda *_: FIXED)
        build(recipe(teacher), out, Silent())
    return out


@pytest.fixture
def pack(run, tmp_path):
    """A pack that a test may change."""
    return Path(shutil.copytree(run / "pack", tmp_path / "pack"))


def files(directory):
    return {f.relative_to(directory).as_posix(): f for f in directory.rglob("*") if f.is_file()}


def test_the_pack_holds_the_weights_once(run):
    found = files(run / "pack")
    weights = f"{VARIANT}/weights.safetensors"
    single = run / "05-quantize/model.safetensors"
    assert found[weights].stat().st_size == single.stat().st_size
    others = {name for name in found if name != weights}
    assert not {n for n in others if n.endswith((".bin", ".safetensors", ".data", ".onnx"))}
    graphs = {n for n in others if n.endswith(".xml")}
    assert graphs == {
        f"{VARIANT}/{folder}openvino/openvino_model.xml"
        for folder in ("", "experts-6/", "experts-4/")
    }
    # a size costs its graph, its config and a reference, and nothing that grows with the weights
    for size in (6, 4):
        folder = files(run / "pack" / VARIANT / f"experts-{size}")
        assert set(folder) == {"config.json", "reference.json", "openvino/openvino_model.xml"}
        largest = found[f"{VARIANT}/openvino/openvino_model.xml"].stat().st_size
        assert folder["openvino/openvino_model.xml"].stat().st_size <= largest


def test_an_archive_brings_every_size_back(run, tmp_path):
    pack = run / "pack"
    archive_pack(pack, tmp_path / "p.tar", Silent())
    back = tmp_path / "back"
    assert extract_archive(tmp_path / "p.tar", back, Silent()) == read_manifest(pack)
    assert {n: f.read_bytes() for n, f in files(back).items()} == {
        n: f.read_bytes() for n, f in files(pack).items()
    }
    content = sum(f.stat().st_size for f in files(pack).values())
    assert (tmp_path / "p.tar").stat().st_size < content + 2048 * (len(files(pack)) + 10)


@pytest.mark.parametrize("name", ["experts-4/openvino/openvino_model.xml", "experts-6/config.json"])
def test_a_flipped_byte_of_a_smaller_size_is_found(pack, name):
    file = pack / VARIANT / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadInputError, match=f"{name}: its content does not match"):
        verify_pack(pack, Silent())
    assert main(["chat", str(pack), "--experts", "8", "--once", "Hello"]) == 2


def test_the_manifest_says_what_each_size_is_and_needs(run):
    """Parameters and memory are those of the pruned model, counted from its own description."""
    manifest = read_manifest(run / "pack")
    (variant,) = manifest.variants
    assert manifest.schema_version == 2 and manifest.student.num_experts == 8
    assert [n.num_experts for n in variant.nested] == SIZES[1:]
    config = read_config(run / "pack" / VARIANT)
    whole = describe(config)
    for size in variant.nested:
        pruned = describe(prefix_config(config, whole, size.num_experts))
        assert size.parameters == pruned.parameters()
        assert size.active_parameters == pruned.active_parameters()
    tensors, _ = read_header(run / "pack" / VARIANT / "weights.safetensors")
    expert = sum(t.nbytes for n, t in tensors.items() if ".experts.4." in n)
    expert += sum(t.nbytes for n, t in tensors.items() if n.endswith("gate.weight")) // 8
    needed = [n.memory_estimate_bytes for n in (variant, *variant.nested)]
    assert needed[1] - needed[2] == pytest.approx(2 * expert, rel=0.01)
    assert needed[0] - needed[1] > 2 * expert  # the whole file has a header too


def test_the_quality_of_each_size_is_that_of_its_own_engine(run, teacher):
    """KL of the folder's engine to the teacher, from logits, position by position."""
    manifest = read_manifest(run / "pack")
    (variant,) = manifest.variants
    said = {8: variant.targets} | {n.num_experts: n.targets for n in variant.nested}
    held_out = [s for s in read_sequences(run / "01-data" / FILE_NAME) if s.held_out]
    reference = teacher_logits(teacher)
    for size, (result,) in said.items():
        folder = run / "pack" / VARIANT / ("" if size == 8 else f"experts-{size}")
        engine = load_engine(folder, "openvino-cpu")
        values = []
        for sequence in held_out:
            p, q = (
                torch.from_numpy(logits[:-1]).double().log_softmax(-1)
                for logits in (reference(sequence.tokens), engine.logits(sequence.tokens.tolist()))
            )
            values.append((p.exp() * (p - q)).sum(-1))
        engine.close()
        assert set(result.quality) == {"all", "chat", "code"} and result.speed == FIXED
        assert result.quality["all"].kl.value == pytest.approx(
            float(torch.cat(values).mean()), rel=0.02
        )
    losses = [said[size][0].quality["all"].kl.value for size in SIZES]
    assert losses[0] < losses[1] < losses[2]  # of random experts each is missed


def test_a_reproducible_pack_says_no_speed_of_any_size(run, teacher, tmp_path):
    out = Path(shutil.copytree(run, tmp_path / "run"))
    build(recipe(teacher, pack={"name": "tiny", "reproducible": True}), out, Silent())
    (variant,) = read_manifest(out / "pack").variants
    results = [*variant.targets, *(t for n in variant.nested for t in n.targets)]
    assert len(results) == 3 and not any(r.speed for r in results)


def without_sizes(values):
    """As an edgekit wrote it that knew no sizes."""
    values["schema_version"] = 1
    for variant in values["variants"]:
        del variant["nested"]
    return values


def test_an_older_manifest_still_loads_and_is_written_as_it_was(run):
    old = without_sizes(json.loads((run / "pack/pack.json").read_text()))
    manifest = parse_manifest(old, "pack.json")
    assert manifest.variants[0].nested == []
    assert json.loads(manifest.to_json()) == old
    del old["schema_version"]
    assert parse_manifest(old, "pack.json") == manifest


def test_a_build_without_sizes_writes_the_older_manifest(run, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(edgekit.evaluate, "measure_speed", lambda *_: FIXED)
    out = Path(shutil.copytree(run, tmp_path / "run"))
    build(recipe(teacher, shrink={"keep": 0.5}, distill=None), out, Silent())
    text = (out / "pack/pack.json").read_text()
    assert json.loads(text)["schema_version"] == 1 and "nested" not in text
    assert read_manifest(out / "pack").to_json() == text


def changed(values, change):
    change(values["variants"][0]["nested"], values)
    return values


CONTRADICTIONS = {
    "rising sizes": (lambda nested, _: nested.reverse(), "nested sizes do not fall"),
    "a size twice": (lambda nested, _: nested.append(nested[-1]), "nested sizes do not fall"),
    "a target of its own": (
        lambda nested, _: nested[0]["targets"][0].update(target="onnx-cpu"), "6 .* other targets",
    ),
    "no files": (lambda nested, _: nested[1].update(num_experts=3), "3 nested experts are not"),
    "as many as all": (
        lambda nested, values: values["student"].update(num_experts=6), "no fewer experts than",
    ),
    "fewer than a token uses": (
        lambda nested, values: values["student"].update(num_experts_per_tok=5), "than every token",
    ),
    "the older version": (
        lambda nested, values: values.update(schema_version=1), "belong together",
    ),
    "the newer version without sizes": (
        lambda nested, _: nested.clear(), "schema_version 2 and nested sizes belong together",
    ),
    "none at all": (lambda nested, _: nested[0].update(num_experts=0), "greater than 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(run, kind):
    change, sentence = CONTRADICTIONS[kind]
    values = changed(json.loads((run / "pack/pack.json").read_text()), change)
    with pytest.raises(BadInputError, match=f"pack.json: .*{sentence}.*; the pack is damaged"):
        parse_manifest(values, "pack.json")


def sized(run):
    """The manifest and its variant, with memory of 8, 6 and 4 GB."""
    values = json.loads((run / "pack/pack.json").read_text())
    variant = values["variants"][0]
    variant["memory_estimate_bytes"] = 8 * 10**9
    for nested in variant["nested"]:
        nested["memory_estimate_bytes"] = nested["num_experts"] * 10**9
    manifest = parse_manifest(values, "pack.json")
    return manifest, manifest.variants[0]


@pytest.mark.parametrize(
    ("free", "size", "reason"),
    [
        (100, 8, "all 8 experts: 8.0 GB of the 100.0 GB of memory that are free"),
        (8, 8, "all 8 experts: 8.0 GB of the 8.0 GB of memory that are free"),
        (7.9, 6, "the first 6 of 8 experts: 6.0 GB; all need 8.0 GB, 7.9 GB are free"),
        (5, 4, "the first 4 of 8 experts: 4.0 GB; all need 8.0 GB, 5.0 GB are free"),
        (1, 4, "the first 4 of 8 experts: the smallest size needs 4.0 GB, only 1.0 GB are free"),
    ],
)
def test_the_largest_size_that_fits_is_taken_or_else_the_smallest(run, free, size, reason):
    manifest, variant = sized(run)
    chosen = choose_size(manifest, variant, int(free * 10**9))
    assert (chosen.num_experts, chosen.reason) == (size, reason)
    assert chosen.memory_bytes == size * 10**9
    folder = Path("v") if size == 8 else Path(f"v/experts-{size}")
    assert chosen.inside(Path("v")) == folder
    fitting = [s.num_experts for s in fitting_sizes(manifest, variant, int(free * 10**9))]
    assert fitting == ([n for n in SIZES if n <= free] or [4])


@pytest.mark.parametrize("size", SIZES)
def test_the_size_that_is_asked_for_is_taken_whatever_is_free(run, size):
    manifest, variant = sized(run)
    chosen = choose_size(manifest, variant, 10**9, experts=size)
    assert chosen.num_experts == size
    assert chosen.reason.endswith(f"{size}.0 GB, as asked; 1.0 GB are free")


def test_a_size_that_is_not_there_is_refused_by_name(run):
    manifest, variant = sized(run)
    with pytest.raises(BadInputError) as raised:
        choose_size(manifest, variant, 10**12, experts=5, source="p")
    assert str(raised.value) == "p: has no size of 5 experts; choose 8 or 6 or 4"


def test_without_sizes_there_is_nothing_to_choose_and_nothing_to_say(run):
    values = without_sizes(json.loads((run / "pack/pack.json").read_text()))
    manifest = parse_manifest(values, "pack.json")
    chosen = choose_size(manifest, manifest.variants[0], free=0)
    assert (chosen.num_experts, chosen.folder, chosen.reason) == (8, "", "")
    dense = {**values["student"], "num_experts": 0, "num_experts_per_tok": 0}
    manifest = parse_manifest({**values, "student": dense}, "pack.json")
    with pytest.raises(BadInputError, match="p: a dense model, which has no experts"):
        choose_size(manifest, manifest.variants[0], 10**12, experts=4, source="p")


def chat(capsys, *arguments, code=0):
    """The answer to Hello, and what was said beside it."""
    capsys.readouterr()
    greedy = ("--temperature", "0", "--max-tokens", "8", "--repetition-penalty", "1")
    found = main(["chat", *map(str, arguments), *greedy, "--once", "Hello"])
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed.out, printed.err


def answer_of(directory):
    from edgekit.cli.chat import ask

    engine = load_engine(directory, "openvino-cpu")
    text = ask(engine, "Hello", Sampling(max_tokens=8, temperature=0, repetition_penalty=1.0))
    engine.close()
    return text


def test_chat_answers_with_the_size_that_is_asked_for(run, capsys, monkeypatch):
    pack = run / "pack"
    answers = {}
    for size, folder in ((8, ""), (4, "experts-4")):
        answers[size], told = chat(capsys, pack, "--experts", size)
        assert answers[size] == answer_of(pack / VARIANT / folder) + "\n"
        named = "all 8 experts" if size == 8 else "the first 4 of 8 experts"
        assert f"{named}: 0.2 GB, as asked; " in told
    assert answers[8] != answers[4]
    monkeypatch.setattr(edgekit.runtimes.devices, "available_memory", lambda: 10**6)
    text, told = chat(capsys, pack)
    assert text == answers[4] and "only 0.0 GB are free" in told
    assert chat(capsys, pack / VARIANT, "--experts", 4) == (answers[4], "")  # a bare variant
    assert chat(capsys, pack / VARIANT)[0] == answers[8]
    verify_pack(pack, Silent())  # running a size leaves nothing behind


@pytest.mark.parametrize(
    ("experts", "free", "folder"),
    [(4, 10**12, "experts-4"), (0, 10**6, "experts-4"), (0, 10**12, "")],
)
def test_the_server_loads_the_size_that_is_asked_for_or_fits(
    run, monkeypatch, experts, free, folder
):
    import edgekit.runtimes.load_batching as loading
    from edgekit.server.serve import Loader, Options

    monkeypatch.setattr(edgekit.runtimes.devices, "available_memory", lambda: free)
    monkeypatch.setattr(loading, "load_batch_engine", lambda directory, *_, **__: directory)
    found = Loader(Options(run / "pack", experts=experts), Silent())()
    assert found == run / "pack" / VARIANT / folder


def test_chat_refuses_other_sizes_by_name(run, tiny_llama, quantized, variant, capsys):
    for place in (run / "pack", run / "pack" / VARIANT):
        _, told = chat(capsys, place, "--experts", 5, code=2)
        assert told == f"error: {place}: has no size of 5 experts; choose 8 or 6 or 4\n"
    dense = variant("llama")
    _, told = chat(capsys, dense, "--experts", 4, code=2)
    assert told == f"error: {dense}: a dense model, which has no experts; leave --experts out\n"


def test_devices_explains_which_size_would_run(run, capsys, monkeypatch):
    import edgekit.cli.devices

    memory = read_manifest(run / "pack").variants[0].nested[0].memory_estimate_bytes
    monkeypatch.setattr(edgekit.cli.devices, "available_memory", lambda: memory)
    assert main(["devices", "--explain", str(run / "pack"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["experts"] == 6 and found["reasons"][-1].startswith("the first 6 of 8 experts")


def test_doctor_checks_the_sizes_that_fit_and_bench_measures_the_one_that_would_run(
    run, capsys, monkeypatch
):
    pack, asked = run / "pack", []
    memory = read_manifest(pack).variants[0].nested[0].memory_estimate_bytes
    monkeypatch.setattr(edgekit.doctor, "available_memory", lambda: memory)
    monkeypatch.setattr(edgekit.cli.bench, "available_memory", lambda: memory)
    monkeypatch.setattr(edgekit.cli.bench, "measure_speed", lambda *job: asked.append(job) or FIXED)
    assert main(["doctor", "--pack", str(pack)]) == 0
    printed = capsys.readouterr().out
    assert "openvino-cpu, 6 experts" in printed and "4 experts" in printed
    assert "8 experts" not in printed
    assert main(["bench", str(pack)]) == 0
    assert asked == [(pack / VARIANT / "experts-6", "openvino-cpu")]
    assert "the first 6 of 8 experts" in capsys.readouterr().err


def test_pack_show_lists_the_sizes_with_memory_and_quality(run, capsys):
    assert main(["pack", "show", str(run / "pack")]) == 0
    printed = capsys.readouterr().out
    (variant,) = read_manifest(run / "pack").variants
    for nested in variant.nested:
        kl = nested.targets[0].quality["all"].kl.value
        line = next(x for x in printed.splitlines() if f"{nested.num_experts} experts, " in x)
        assert "shared" in line and f"{kl:.4f}" in line


def test_every_size_is_measured_by_every_target_and_the_teacher_is_asked_once(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(edgekit.evaluate, "measure_speed", lambda *_: FIXED)
    held_out = [s for s in read_sequences(run / "01-data" / FILE_NAME) if s.held_out]
    asked = []
    engine = load_engine(run / "06-compile" / "experts-4", "openvino-cpu")

    def smallest(tokens):
        asked.append(len(tokens))
        return engine.logits(tokens.tolist())

    targets = ["openvino-cpu", "openvino-gpu"]
    report = evaluate(run / "06-compile", smallest, 1, held_out, targets, tmp_path, Silent())
    engine.close()
    assert asked == [len(s.tokens) for s in held_out]
    assert [n.num_experts for n in report.nested] == SIZES[1:]
    assert [r.target for n in report.nested for r in n.results] == ["openvino-cpu"] * 2
    assert set(report.skipped) == {"openvino-gpu"}
    kl = [report.results[0], *(n.results[0] for n in report.nested)]
    assert kl[2].quality["all"].kl.value < 1e-6 < kl[1].quality["all"].kl.value


def test_plan_tells_the_sizes_and_which_fits(run, capsys):
    source = run / "02-shrink"
    assert main(["plan", str(source), "--target", "openvino-cpu", "--memory", "8GB"]) == 0
    printed = capsys.readouterr().out
    assert "One weights file for 8 and 6 and 4 experts: a machine takes the largest" in printed
    for share in ("100%", "75%", "50%"):
        assert f"int4-g64, {share}" in printed
    with Checkpoint(source) as checkpoint:
        whole = checkpoint.architecture
    plan = make_plan(whole, ["openvino-cpu"], 8 * 10**9, 64, SIZES)
    needed = {c.keep: c.total_bytes for c in plan.candidates if c.scheme == "int4-g32"}
    assert list(needed) == [1.0, 0.75, 0.5]
    config = read_config(source)
    for share, size in ((0.75, 6), (0.5, 4)):
        pruned = describe(prefix_config(config, whole, size))
        alone = make_plan(pruned, ["openvino-cpu"], 8 * 10**9, 64)
        same = next(c for c in alone.candidates if (c.scheme, c.keep) == ("int4-g32", 1.0))
        assert needed[share] == same.total_bytes
    smallest = min(c.total_bytes for c in plan.candidates if c.keep == 0.75)
    tight = make_plan(whole, ["openvino-cpu"], smallest, 64, SIZES)
    assert tight.recommended["openvino-cpu"].keep == 0.75
    assert "the first 75% of them do, from the same pack" in tight.reasons["openvino-cpu"]


DAMAGED = {
    "a word": ("8,6,4", "is not a list of numbers of experts"),
    "rising": ([4, 6, 8], "each smaller than the one before"),
    "another checkpoint's": ([16, 8], "begins with 16 but the checkpoint has 8 experts"),
    "below top-k": ([8, 1], "1 is fewer than the 2 experts that every token uses"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_key_is_refused_in_one_sentence(teacher, tmp_path, capsys, kind):
    value, sentence = DAMAGED[kind]
    source = nested_source(teacher, tmp_path / "m", value)
    commands = {
        "plan": ["plan", str(source)],
        "quantize": ["quantize", str(source), "--out", str(tmp_path / "q")],
    }
    for command in commands.values():
        assert main(command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {source / 'config.json'}: edgekit_nested: ")
        assert sentence in error
    assert not (tmp_path / "q").exists()


def a_little_text(file):
    """Forty documents in ``file``."""
    words = "The quick brown fox jumps over the lazy dog while the sun sets behind the hills. "
    rows = [{"text": f"{words[i:]}{words} {i} {words}"} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def text_of(tmp_path):
    """Options for a little text of one's own."""
    return ["--data", a_little_text(tmp_path / "t.jsonl"), "--tokens", "256", "--held-out-tokens",
            "64", "--sequence-length", "32"]  # fmt: skip


def test_evaluate_shows_every_size(run, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(edgekit.evaluate, "measure_speed", lambda *_: FIXED)
    text = a_little_text(tmp_path / "t.jsonl")
    assert main(["evaluate", str(run / "06-compile"), "--teacher", str(teacher), "--text", text,
                 "--tokens", "64", "--sequence-length", "32"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    for name in ("openvino-cpu", "openvino-cpu, 6 experts", "openvino-cpu, 4 experts"):
        assert f"{name} all " in printed and f"{name}: 9.0 tokens/s" in printed


def test_sizes_below_top_k_are_refused_before_any_work(teacher, tmp_path, capsys):
    command = ["shrink", str(teacher), "--nested", "1.0,0.125", *text_of(tmp_path)]
    assert main([*command, "--out", str(tmp_path / "o")]) == 2
    assert "fewer than the 2" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_the_whole_way_from_the_command_line(teacher, tmp_path, capsys):
    ordered, packed, out = (str(tmp_path / n) for n in ("ordered", "packed", "variant"))
    command = ["shrink", str(teacher), "--nested", SHARES, *text_of(tmp_path)]
    assert main([*command, "--out", ordered]) == 0
    printed = capsys.readouterr().out
    assert "KL as a prefix" in printed
    assert main(["quantize", ordered, "--scheme", "int4-g32", "--method", "rtn",
                 "--out", packed]) == 0  # fmt: skip
    assert main(["compile", packed, "--no-parity", "--target", "openvino-cpu", "--target",
                 "onnx-cpu", "--out", out]) == 0  # fmt: skip
    assert "graphs for 8 and 6 and 4 experts" in capsys.readouterr().out
    assert read_config(Path(out))["edgekit_nested"] == SIZES
    single = (tmp_path / "packed/model.safetensors").stat().st_size
    assert (tmp_path / "variant/weights.safetensors").stat().st_size == single
    assert sorted(n for n in files(Path(out)) if n.endswith((".xml", ".onnx"))) == [
        "experts-4/openvino/openvino_model.xml", "experts-6/openvino/openvino_model.xml",
        "model-experts-4.onnx", "model-experts-6.onnx", "model.onnx", "openvino/openvino_model.xml",
    ]  # fmt: skip
    answers = [
        chat(capsys, out, "--device", d, "--experts", 4) for d in ("openvino-cpu", "onnx-cpu")
    ]
    assert all(text.strip() for text, _ in answers)


def test_a_model_made_of_a_nested_one_promises_no_sizes_of_it(run, tiny_model, tmp_path):
    """Pruned further it has fewer experts than the key says, and as a dense model none."""
    for name in ("pruned", "dense", "packed", "variant", "scratch"):
        (tmp_path / name).mkdir()
    section = ShrinkSection(keep=0.5)
    pruned = tmp_path / "pruned"
    shrink(run / "02-shrink", run / "01-data", section, pruned, Silent(), tmp_path / "scratch")
    assert "edgekit_nested" not in read_config(pruned)
    quantize(pruned, Scheme.parse("int4-g32"), tmp_path / "packed", Silent(), "rtn")
    report = compile_variant(tmp_path / "packed", ["openvino-cpu"], tmp_path / "variant", Silent())
    assert report.nested == []
    source = nested_source(tiny_model("qwen3_moe", **EIGHT), tmp_path / "source", SIZES)
    text = read_sequences(run / "01-data" / FILE_NAME)
    options = DenseOptions(family="qwen3_moe", scaling="uniform")  # its own config, layers dense
    densify(source, text, options, tmp_path / "dense", Silent())
    assert "edgekit_nested" not in read_config(tmp_path / "dense")
