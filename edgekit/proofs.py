"""What is known of an NPU graph without the NPU; made by ``edgekit.runtimes.npu_proof``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Platform = Literal["3720", "4000", "5010", "5020"]


class StaticProof(BaseModel):
    """The NPU's static pipeline, run on the CPU, against the CPU's own run of the same graph.

    ``error`` is the largest difference of logits over the largest logit, ``agreement`` the part of
    ``tokens`` whose most likely token is the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_length: int = Field(gt=0)
    answer_length: int = Field(gt=0)
    tokens: int = Field(gt=0)
    agreement: float = Field(ge=0, le=1)
    error: float = Field(ge=0)
    seconds: float = Field(ge=0)
    passed: bool


class NpuProof(BaseModel):
    """What Intel's NPU compiler made of a variant's graph for one platform.

    ``parts`` counts the NPU executables in the compiled blob. ``error`` is empty when it passed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    platform: Platform
    compiler: str
    openvino: str
    prompt_length: int = Field(gt=0)
    answer_length: int = Field(gt=0)
    parts: int = Field(ge=0)
    blob_bytes: int = Field(ge=0)
    seconds: float = Field(ge=0)
    passed: bool
    error: str = ""
