"""Section `probe`: how the erased model is probed beyond text."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from components.common.sections import Section, Some
from components.common.variants import Variant


class ProbeSize(Section):
    """How much is tried."""

    probes: Some[str]
    """Names of probes, in the order in which they run."""
    variants: Some[Variant]
    """Variants that are probed, beside the base."""
    images: int = Field(gt=0)
    """Real images of each request's target that a probe starts from."""
    steps: int = Field(gt=0)
    """DDIM steps from noise to an image."""
    strength: float = Field(gt=0, le=1)
    """How far up to noise a real image is taken by completion and purification."""
    inversions: int = Field(gt=0)
    """Embeddings that textual inversion learns for each variant."""
    inversion_steps: int = Field(gt=0)
    """Optimiser steps of each."""
    relearning_steps: int = Field(gt=0)
    """Most optimiser steps of fine-tuning."""
    every: int = Field(gt=0)
    """Optimiser steps of fine-tuning between two looks at what is drawn."""
    known: int = Field(gt=0)
    """Images of known content, with the target and as many without, on which each judge is measured."""
    recovered: float = Field(ge=0, le=1)
    """The gate: each probe's corrected share of images with the target, its upper bound, of the default variant."""


class ProbeParams(Section):
    """Probing the shipped default."""

    size: str
    """Which of `sizes` to run."""
    sizes: dict[str, ProbeSize]
    """How much is tried, by size."""
    second_judge: Path | None = None
    """Folder of an independent judge; none where the world has only one."""
    batch: int = Field(gt=0)
    """Images drawn at once."""
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _size_is_known(self) -> ProbeParams:
        if self.size not in self.sizes:
            raise ValueError(f"probe.size={self.size!r} is not among probe.sizes ({', '.join(self.sizes)})")
        return self
