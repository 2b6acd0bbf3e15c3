"""How training is run: what ``[distill]`` says beside what is learnt from whom."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from edgekit.recipe_section import Section, contradiction

# what changes no more than rounding, so that a training continues when it is changed
WITHOUT_EFFECT = frozenset(
    {"micro_batch_tokens", "activation_checkpointing", "save_every", "trackers"}
)


class TrainingOptions(Section):
    """The optimizer, memory and time of a training, and how it is watched."""

    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw",
        description="adafactor keeps almost nothing beside weights and gradients; its learning "
        "rate is relative to the size of the weights",
    )
    weight_decay: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    warm_up: float = Field(0.1, ge=0, le=1, description="share of the steps with a rising rate")
    decay: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate after that, to a tenth"
    )
    clip_norm: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="longest gradient of a step; 0: any"
    )
    micro_batch_tokens: int = Field(
        512, ge=0, le=10**7,
        description="tokens of one forward pass; 0: measured when training begins",
    )  # fmt: skip
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "auto",
        description="of the matrix products; auto: bfloat16 where the device multiplies it by "
        "itself, or what a trial measures to be faster",
    )
    activation_checkpointing: bool = Field(
        False, description="compute layers twice instead of keeping what is inside them"
    )
    lora_rank: int = Field(
        0, ge=0, le=4096,
        description="train two matrices of this rank beside every matrix of a layer; 0: itself",
    )  # fmt: skip
    lora_alpha: float = Field(
        32.0, gt=0, le=10**5, allow_inf_nan=False, description="their product counts this / rank"
    )
    evaluate_every: int = Field(
        0, ge=0, le=10**7,
        description="steps between measurements on held-out text, the best of which is what is "
        "written; 0: only before and after",
    )  # fmt: skip
    patience: int = Field(
        0, ge=0, le=10**6, description="measurements without gain that end the training; 0: never"
    )
    save_every: int = Field(25, ge=1, le=10**7, description="steps between saved states")
    trackers: tuple[str, ...] = Field(
        (), description="of accelerate, such as tensorboard or wandb, if they are installed"
    )

    @model_validator(mode="after")
    def _patience_needs_measurements(self) -> Self:
        if self.patience and not self.evaluate_every:
            raise contradiction("patience counts measurements; set evaluate_every to make some")
        return self

    def with_effect(self) -> dict[str, Any]:
        """What decides which weights come out, as JSON values."""
        return self.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
