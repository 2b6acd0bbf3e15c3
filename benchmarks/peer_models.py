"""What the peers of ``distill_peers.py`` load; also read in TRL's environment."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM


def teacher_and_student(job: dict[str, Any]) -> tuple[Any, Any]:
    """Both models of a job; the student is always float32, the teacher in the job's precision."""
    half = job["precision"] == "bfloat16"
    return tuple(
        AutoModelForCausalLM.from_pretrained(job[name], dtype=dtype, local_files_only=True)
        for name, dtype in (
            ("teacher", torch.bfloat16 if half else torch.float32), ("student", torch.float32)
        )
    )  # fmt: skip
