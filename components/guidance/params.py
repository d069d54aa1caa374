"""Section `guidance`: what a user may choose of an adapter; the rest is the recipe (recipe.py)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.common.sections import Section


class GuidanceParams(Section):
    """All-but-One fine-tuning of one LoRA adapter for each request."""

    rank: int = Field(gt=0)
    """Rank of the LoRA on the keys and values of cross-attention."""
    steps: int = Field(ge=0)
    """Optimiser steps; 0 is the instant mode: the closed-form start alone, in seconds."""
    retain_weight: float = Field(ge=0)
    """Weight of the change on prompts to retain: more leaves other images more alike and draws fewer anchors."""
    hold: Literal["null-space", "penalty"]
    """What keeps the unconditional output in place: `null-space` makes the adapter unable to read the empty prompt; `penalty`
    adds the drift to the loss, as All but One does, which costs time and leaves some."""
    precision: Literal["no", "bf16"]
    """Precision of the U-Net's passes, and in the instant mode of the text encoder's: `no` is float32, `bf16` is autocast to
    bfloat16. The adapter is float32 either way."""
    gradient_checkpointing: bool
    """Compute activations twice instead of storing them, so that a large U-Net fits into memory."""
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _penalty_needs_steps(self) -> GuidanceParams:
        if self.hold == "penalty" and not self.steps:
            raise ValueError("hold is 'penalty', which acts in training alone, and steps is 0; use hold: null-space")
        return self
