"""The command line: help without weight, exit codes, JSON, and single steps end to end."""

import json
import os
import subprocess
import sys

import pytest

from edgekit.cli.main import VERBS, main
from edgekit.progress import Silent


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_every_verb_and_imports_nothing_heavy():
    code = (
        "import sys; from edgekit.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'openvino', 'pydantic', 'rich', 'typer', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert all(f"  {verb}" in result.stdout for verb in VERBS)
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_what_runs_on_the_ai_pc_imports_without_torch():
    modules = [
        "cli.chat", "cli.pack", "cli.devices", "cli.doctor", "cli.inspect", "cli.plan", "cli.bench",
        "runtimes.openvino_engine", "runtimes.onnx_engine", "archive", "pipeline",
    ]  # fmt: skip
    code = "import sys\n" + "".join(f"import edgekit.{m}\n" for m in modules)
    code += "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Usage: edgekit " + verb in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["biuld"], 2, "did you mean build"),
        (["inspect"], 2, "inspect needs a MODEL"),
        (["inspect", "x", "--jsn"], 2, "--jsn"),
        (["plan"], 2, "plan needs a MODEL"),
        (["plan", "x", "--target", "tpu"], 2, "--target tpu"),
        (["plan", "x", "--memory", "lots"], 2, "no such directory|not a size"),
        (["chat", "nowhere"], 2, "not a pack"),
        (["pack", "verify", "nowhere"], 2, "not a pack"),
        (["build", "nowhere.toml", "--out", "x"], 2, "cannot be read"),
    ],
)
def test_bad_usage_is_one_sentence_and_code_2(arguments, code, sentence, capsys):
    import re

    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error)


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("torch", "build", ["demo", "--no-chat"]),
        ("torch", "build", ["shrink", "{model}", "--out", "o"]),
        ("torch", "build", ["distill", "capture", "{model}", "--out", "o"]),
        ("torch", "build", ["evaluate", "{variant}", "--teacher", "{model}"]),
        ("torch", "build", ["parity", "{variant}", "--reference", "{quantized}"]),
        ("onnx", "build", ["compile", "{quantized}", "--target", "onnx-cpu", "--out", "o"]),
        ("onnxruntime_genai", "onnx", ["chat", "{variant}", "--device", "onnx-cpu", "--once", "a"]),
    ],
)
def test_what_needs_an_extra_names_it(
    tiny_mixtral, quantized, variant, tmp_path, module, extra, arguments
):
    places = {
        "{model}": str(tiny_mixtral), "{variant}": str(variant("mixtral")),
        "{quantized}": str(quantized("mixtral", "int4-g32")),
    }  # fmt: skip
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from edgekit.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *(places.get(a, a) for a in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 4, result.stderr
    assert last.startswith("error: ") and f'pip install "edgekit[{extra}]"' in last
    assert not (tmp_path / "o").exists()


def test_errors_are_json_when_json_is_asked(capsys):
    assert main(["inspect", "nowhere", "--json"]) == 2
    assert json.loads(capsys.readouterr().err)["exit_code"] == 2


def test_an_interrupt_is_130(monkeypatch, capsys):
    import edgekit.cli.inspect as verb

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "resolve_config", interrupt)
    assert main(["inspect", "x"]) == 130
    assert "interrupted; run the same command again" in capsys.readouterr().err


def test_inspect_and_plan_speak_json(tiny_mixtral, capsys):
    assert main(["inspect", str(tiny_mixtral), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["family"] == "mixtral" and shown["weights_verified"]
    assert main(["plan", str(tiny_mixtral), "--target", "openvino-npu", "--json"]) == 0
    assert "did not finish" in json.loads(capsys.readouterr().out)["reasons"]["openvino-npu"]


def test_rules_devices_and_doctor_answer(capsys):
    for arguments in (["plan", "--rules"], ["devices"], ["doctor"]):
        assert main(arguments) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_single_steps_make_a_variant_that_answers(tiny_mixtral, tmp_path, capsys):
    def run(*arguments):
        assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    small, quantized, variant = (tmp_path / n for n in ("small", "q", "v"))
    run("shrink", tiny_mixtral, "--keep", "0.5", "--tokens", "256", "--out", small)
    run("quantize", small, "--scheme", "int4-g32", "--out", quantized)
    run("compile", quantized, "--target", "openvino-cpu", "--target", "onnx-cpu", "--out", variant)
    shown = run("parity", variant, "--reference", quantized, "--target", "onnx-cpu", "--json")
    assert json.loads(shown)["results"][0]["mean_kl"] < 1e-5
    answer = run("chat", variant, "--once", "Hello", "--max-tokens", "4", "--json")
    assert json.loads(answer)["stats"]["generated_tokens"] >= 1


def test_the_copy_for_transformers_loads_there(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    copy = tmp_path / "copy"
    arguments = ["quantize", str(tiny_llama), "--scheme", "int4-g32", "--out", str(tmp_path / "q")]
    assert main([*arguments, "--for-transformers", str(copy)]) == 0
    model = AutoModelForCausalLM.from_pretrained(copy)
    assert model.config.quantization_config.quant_method == "compressed-tensors"
    scheme = model.model.layers[0].self_attn.q_proj.quantization_scheme
    assert (scheme.weights.num_bits, scheme.weights.group_size) == (4, 32)


def test_distill_alone(tiny_mixtral, tiny_model, tmp_path, capsys):
    cache, out = tmp_path / "cache", tmp_path / "out"
    code = main(["distill", "capture", str(tiny_mixtral), "--tokens", "256", "--held-out-tokens",
                 "64", "--sequence-length", "32", "--out", str(cache)])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    student = tiny_model("mixtral", seed=3)
    code = main(["distill", "train", str(student), "--cache", str(cache), "--steps", "2",
                 "--batch-tokens", "64", "--out", str(out), "--json"])  # fmt: skip
    assert code == 0
    text = capsys.readouterr().out
    assert len(json.loads(text[text.index("{") :])["losses"]) == 2
    assert not (tmp_path / ".out.state").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["inspect", "x" * 300], "no such directory|name too long"),
        (["pack", "archive", ".", "--extract", "--out", "{tmp}/o"], "is a directory"),
        (["chat", "{variant}", "--once", "  "], "question is empty"),
        (["chat", "{variant}", "--once", "Hi", "--seed", "-1"], "--seed"),
        (["chat", "{variant}", "--once", "Hi", "--device", "tpu"], "'tpu' is not known"),
    ],
)
def test_what_the_system_or_a_verb_refuses_is_one_sentence(
    variant, tmp_path, capsys, arguments, sentence
):
    import re

    places = {"{tmp}": str(tmp_path), "{variant}": str(variant("llama"))}
    filled = [a.replace("{tmp}", places["{tmp}"]) for a in arguments]
    assert main([places.get(a, a) for a in filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error.lower()), error


def test_brackets_in_a_name_are_no_markup(tiny_llama, tmp_path, capsys):
    import shutil

    model = shutil.copytree(tiny_llama, tmp_path / "m[/x][red]")
    assert main(["inspect", str(model)]) == 0
    assert "m[/x][red]" in capsys.readouterr().out.replace("\n", "")


def test_inspect_knows_a_quantized_checkpoint_and_a_variant(quantized, variant, capsys):
    for directory in (quantized("llama", "int4-g32"), variant("llama")):
        assert main(["inspect", str(directory)]) == 0
        assert "quantized already" in capsys.readouterr().out


def test_output_survives_a_pipe_with_an_old_code_page(variant):
    command = [sys.executable, "-m", "edgekit", "chat", str(variant("llama")), "--max-tokens", "30",
               "--once", "\u4f60\u597d \udcff", "--temperature", "5", "--seed", "1"]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert result.returncode == 0, result.stderr
    result.stdout.decode("utf-8")


def test_chat_without_a_device_takes_what_the_pack_was_made_for(tmp_path, monkeypatch):
    from types import SimpleNamespace as Fake

    import edgekit.runtimes.devices as module
    from edgekit.errors import MissingRuntimeError

    targets = [Fake(target="onnx-cpu")]
    variant = Fake(targets=targets, memory_estimate_bytes=0, nested=[])
    manifest = Fake(variants=[variant], student=Fake(num_experts=0))
    monkeypatch.setattr(module, "read_manifest", lambda _: manifest)
    monkeypatch.setattr(module, "open_pack", lambda pack, device, *_: pack / device)
    assert module.locate(tmp_path, "", Silent()) == (tmp_path / "onnx-cpu", "onnx-cpu")
    targets[0] = Fake(target="openvino-npu")
    with pytest.raises(MissingRuntimeError, match="none of its targets is on this machine"):
        module.locate(tmp_path, "", Silent())
