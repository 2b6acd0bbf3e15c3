"""The tables of the stages that may follow offline distillation.

What they do not say themselves, such as what is trained and in which batches, is as ``[distill]``
says.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekit.recipe_section import DivergenceName, Section


class OnPolicySection(Section):
    """``[distill.on_policy]``: the student learns from the teacher on text that it writes itself.

    In every round it continues prompts and the teacher says what it thinks of each token.
    """

    steps: int = Field(ge=1, le=10**7, description="optimizer steps in all")
    round_steps: int = Field(
        8, ge=1, le=10**6, description="steps on the text of one round, which they see once"
    )
    prompts: tuple[str, ...] = Field(
        (),
        description=".txt, .jsonl or .parquet: messages up to the last user's, or the beginnings "
        "of texts; empty: from where [data] has its text",
    )
    prompt_tokens: int = Field(
        32, ge=1, le=131_072, description="of a text without messages that begin an answer"
    )
    new_tokens: int = Field(64, ge=2, le=131_072, description="of an answer, at most")
    sampling_temperature: float = Field(
        1.0, gt=0, le=100, allow_inf_nan=False, description="at which the student writes"
    )
    loss: DivergenceName = Field("reverse_kl", description="between teacher and student")
    beta: float = Field(0.5, gt=0, lt=1, description="of jsd: near 0 like forward, near 1 reverse")
    top_k: int = Field(
        64, ge=1, le=4096, description="teacher logits used at a position; the rest is one mass"
    )
    learning_rate: float = Field(2e-5, gt=0, le=1, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**32)


class SupervisedSection(Section):
    """``[distill.supervised]``: short tuning on the user's own text, held to the teacher.

    Every step has a batch of the user's text, on which the loss is the cross-entropy of its next
    tokens, and one of the cache's, on which it is the divergence of ``[distill]``.
    """

    files: tuple[str, ...] = Field(min_length=1, max_length=255,
                                   description=".txt, .jsonl or .parquet")  # fmt: skip
    tokens: int = Field(65_536, ge=16, le=10**10, description="of the files, for training")
    held_out_tokens: int = Field(4096, ge=16, le=10**8, description="of the files, to measure on")
    count: Literal["all", "assistant"] = Field(
        "assistant", description="which words of messages are learned; text counts wholly"
    )
    steps: int = Field(ge=1, le=10**7)
    anchor: float = Field(
        0.5, ge=0, lt=1, description="weight of the divergence; the cross-entropy has the rest"
    )
    control: bool = Field(
        True, description="train once more without the anchor, to say what it prevented"
    )
    learning_rate: float = Field(2e-5, gt=0, le=1, allow_inf_nan=False)
    seed: int = Field(0, ge=0, lt=2**32)
