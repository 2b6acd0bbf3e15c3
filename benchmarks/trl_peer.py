"""TRL's GKD trainer on one job; runs in an environment of its own.

    PEER_ENV/bin/python benchmarks/trl_peer.py --work DIRECTORY

Run by ``benchmarks/distill_peers.py``, which writes ``job.json`` and ``ids.npy`` there. Only the
given text is learned (``lmbda=0``), by forward KL (``beta=0``), which is what edgekit does.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peer_models import teacher_and_student
from reap_peer import memory
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class Clock(TrainerCallback):
    """Notes the seconds of every optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *_, **__):
        """A step begins."""
        self.begin = time.perf_counter()

    def on_step_end(self, *_, **__):
        """A step has ended."""
        self.seconds.append(time.perf_counter() - self.begin)


def collate(rows):
    """Every position counts; there is no prompt."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    ones = torch.ones_like(ids)
    return {
        "input_ids": ids, "attention_mask": ones, "labels": ids,
        "prompts": ids[:, :1], "prompt_attention_mask": ones[:, :1],
    }  # fmt: skip


def main():
    """Train, then write seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    teacher, student = teacher_and_student(job)
    ids = np.load(work / "ids.npy")
    clock = Clock()
    options = GKDConfig(
        output_dir=str(work / "trl"), max_steps=job["steps"], learning_rate=1e-4, lmbda=0.0,
        beta=0.0, temperature=1.0, per_device_train_batch_size=job["micro"],
        gradient_accumulation_steps=job["batch"] // job["micro"], use_cpu=True,
        bf16=job["precision"] == "bfloat16",
        gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1000,
        disable_tqdm=True, max_length=None, weight_decay=0.0,
    )  # fmt: skip
    trainer = GKDTrainer(
        model=student, teacher_model=teacher, args=options, data_collator=collate,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        processing_class=AutoTokenizer.from_pretrained(job["student"], local_files_only=True),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    values = {"seconds": clock.seconds, "peak": memory("VmHWM")}
    (work / "result.json").write_text(json.dumps(values), encoding="utf-8")


if __name__ == "__main__":
    main()
