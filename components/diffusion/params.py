"""Section `base`: the model that requests change."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from components.common.sections import Section


class BaseParams(Section):
    """The model that requests change."""

    path: Path
    """Folder of a diffusers pipeline of Stable Diffusion 1.x, 2.x or XL; an input, never written."""
    hookpoint: str | tuple[str, ...]
    """Module of the text encoder whose output (its residual stream) the SAE reads, such as encoder.layers.2; for SDXL a list
    of two, one for each encoder."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance with which images are drawn, in training, evaluation and purification alike."""
    solver_steps: int = Field(gt=0, le=1000)
    """Solver steps with which images are drawn, in evaluation and by `expunge generate`."""

    @field_validator("hookpoint", mode="before")
    @classmethod
    def _hookpoint_is_text(cls, value: object) -> object:
        listed = value if isinstance(value, list) and value else [value]
        if not all(isinstance(name, str) for name in listed):
            raise ValueError("Input should be a valid string, or a list of one for each text encoder")
        return tuple(value) if isinstance(value, list) else value

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """One for each text encoder."""
        return (self.hookpoint,) if isinstance(self.hookpoint, str) else self.hookpoint
