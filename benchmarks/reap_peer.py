"""llmcompressor's REAP modifier on one checkpoint; runs in an environment of its own.

    PEER_ENV/bin/python benchmarks/reap_peer.py MODEL IDS.npy KEEP BATCH RESULT.json

Run by ``benchmarks/shrink_peers.py``. The pipeline "basic" measures the whole model before it
prunes, as edgekit does; only routed tokens are run through an expert.
"""

import importlib.metadata
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader


def memory(field: str) -> int:
    """A field of this process' memory, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def main() -> None:
    """Prune, then write keep-set, seconds and memory."""
    model_path, ids_path, result = Path(sys.argv[1]), sys.argv[2], sys.argv[5]
    keep, batch = int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from llmcompressor.modifiers.pruning.reap import REAPPruningModifier
    from transformers import AutoModelForCausalLM

    config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    experts = config.get("num_experts") or config["num_local_experts"]
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    linearize_moe(model)
    ids = torch.from_numpy(np.load(ids_path))
    rows = [{"input_ids": ids[i : i + batch]} for i in range(0, len(ids), batch)]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "kept.json"
        recipe = REAPPruningModifier(sparsity=1 - keep / experts, report_path=str(report))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = memory("VmRSS")
        begin = time.perf_counter()
        oneshot(
            model=model,
            dataset=DataLoader(rows, batch_size=None),
            recipe=recipe,
            pipeline="basic",
            moe_calibrate_all_experts=False,
        )
        seconds = time.perf_counter() - begin
        kept = json.loads(report.read_text(encoding="utf-8"))
    ordered = [kept[name] for name in sorted(kept, key=lambda n: int(n.split(".")[2]))]
    values = {
        "kept": ordered,
        "seconds": seconds,
        "growth": memory("VmHWM") - before,
        "peak": memory("VmHWM"),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("llmcompressor", "transformers", "torch")
        },
    }
    Path(result).write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
