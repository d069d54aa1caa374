"""Section `openmoji` of training/openmoji/params.yaml: how base model and judge of the embedded world were trained."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from components.common.sections import Section, read_section

PARAMS = Path(__file__).with_name("params.yaml")


class OpenmojiParams(Section):
    """How the base model and the judge that ship were trained; the stage is frozen."""

    base: Path
    """Where the base model lies, relative to the project's root; the judge lies in its folder `judge`."""
    clip: Path
    """Where the image tower and the projections lie that the text encoder was trained with."""
    singles: int = Field(gt=0)
    """Renders of each concept in each style."""
    pairs: int = Field(gt=0)
    """Renders of two concepts."""
    vae_steps: int = Field(gt=0)
    """Optimiser steps of the autoencoder, 8 images each."""
    text_steps: int = Field(gt=0)
    """Optimiser steps of the text encoder, 160 captions and 96 phrases each."""
    teacher_captions: int = Field(gt=0)
    """Captions with a teacher embedding."""
    teacher_english: int = Field(gt=0)
    """English phrases with a teacher embedding."""
    unet_steps: int = Field(gt=0)
    """Optimiser steps of the U-Net, 48 images each."""
    judge_steps: int = Field(gt=0)
    """Optimiser steps of the judge, 64 images each."""
    seed: int = Field(ge=0)

    @property
    def judge(self) -> Path:
        """Where the judge lies."""
        return self.base / "judge"


def read_params() -> OpenmojiParams:
    """The section, from the file beside this one."""
    return read_section("openmoji", OpenmojiParams, PARAMS)
