"""Section `guidance`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.common.sections import Section


class GuidanceParams(Section):
    """All-but-One fine-tuning of one LoRA adapter a request."""

    parameters: Literal["xattn-v", "xattn-kv", "xattn", "attn"]
    """Which projections get a LoRA: cross-attention values, keys and values, all of cross-attention, all of attention."""
    rank: int = Field(gt=0)
    """Rank of the LoRA."""
    start: Literal["closed-form", "random"]
    """Where values, and keys if they have a LoRA, start: at the least-squares map of the target's states to the anchor's, or where they change nothing."""
    start_retain_weight: float = Field(gt=0)
    """μ: weight of the states to keep in that map, and in the axes along which an adapter is trained, whatever its start."""
    start_uncond_weight: float = Field(ge=0)
    """ν: weight of the empty prompt's states in both."""
    trajectories: int = Field(gt=0)
    """Cached sampling trajectories of the frozen model, about the target or its anchor."""
    retain_trajectories: int = Field(gt=0)
    """The same about what is to be kept: one in eight about neighbours, five of two concepts."""
    solver_steps: int = Field(gt=0)
    """Solver steps of a cached trajectory; x_t is kept at each of them."""
    retain_solver_steps: int = Field(gt=0)
    """Solver steps of one about what is to be kept: fewer of them, and more prompts, at the same price."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of the cached trajectories."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(gt=0)
    """Samples a step about the target; without null_space as many, and half as many more, with the empty prompt."""
    retain_batch: int = Field(gt=0)
    """Samples a step of prompts to retain."""
    lr: float = Field(gt=0)
    """AdamW's learning rate."""
    uncond_weight: float = Field(ge=0)
    """λ: weight of the drift of the unconditional score; in the null space it is held without."""
    retain_weight: float = Field(ge=0)
    """Weight of the drift on prompts to retain, neighbours first."""
    map_weight: float = Field(ge=0)
    """Weight in training of what the closed-form start minimises over all prompts, a mean over the layers that have a LoRA and read
    the prompt; with that start alone."""
    negative_guidance: float = Field(ge=0)
    """η: without an anchor the target's guidance term is trained to be -η times what it was; 0: to be nothing."""
    anchor_share: float = Field(ge=0, le=1)
    """Part of the cached trajectories about the target that draw the anchor instead; none without an anchor."""
    precision: Literal["no", "bf16"]
    """Of the U-Net's passes, in training and in sampling what it trains on: float32, or bfloat16 where it can; the adapter is
    float32 either way."""
    gradient_checkpointing: bool
    """Compute activations twice rather than keep them: a large U-Net then fits."""
    null_space: bool
    """Keep the adapter blind to what carries the empty prompt, so that the unconditional score hardly moves; with xattn-v and xattn-kv alone."""
    seed: int = Field(ge=0)

    @property
    def only_reads_prompt(self) -> bool:
        """Whether all layers of an adapter read the prompt: it is then a map of the prompt's hidden states."""
        return self.parameters in ("xattn-v", "xattn-kv")

    @model_validator(mode="after")
    def _null_space_holds(self) -> GuidanceParams:
        if self.null_space and not self.only_reads_prompt:
            raise ValueError(
                f"guidance.null_space needs an adapter of keys and values, or of values alone, not guidance.parameters={self.parameters!r}; "
                "use xattn-v, xattn-kv or null_space: false"
            )
        return self
