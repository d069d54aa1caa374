"""Section `sae`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.common.sections import Section


class SaeParams(Section):
    """The sparse autoencoder on the text encoder's residual stream."""

    activation: Literal["batchtopk", "topk"]
    """batchtopk is stored as JumpReLU with one threshold; topk is the form of Interpret-then-Deactivate."""
    d_sae: int = Field(gt=0)
    """Latents."""
    k: int = Field(gt=0)
    """Active latents a token, on average (batchtopk) or exactly (topk)."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(gt=0)
    """Tokens a step."""
    lr: float = Field(gt=0)
    """Adam's learning rate."""
    auxk: int = Field(gt=0)
    """Dead latents that reconstruct the residual in the auxiliary loss."""
    auxk_coefficient: float = Field(ge=0)
    """Weight of the auxiliary loss."""
    dead_after: int = Field(gt=0)
    """Tokens without a single activation after which a latent counts as dead."""
    padding: float = Field(ge=0, le=1)
    """Share of the repeated padding positions that is trained on."""
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _k_fits(self) -> SaeParams:
        if self.k >= self.d_sae:
            raise ValueError(f"sae.k={self.k} must be smaller than sae.d_sae={self.d_sae}")
        return self
