"""Section `base`: the model that requests change."""

from __future__ import annotations

from pathlib import Path

from components.common.sections import Section


class BaseParams(Section):
    """The model that requests change, and what measures it."""

    path: Path
    """Folder of a diffusers StableDiffusionPipeline."""

    hookpoint: str
    """Module of the text encoder whose output (its residual stream) the SAE reads, such as encoder.layers.2."""
