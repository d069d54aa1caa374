"""The embedded world: its names and sentences, and the OpenMoji drawing and the look behind each name.

What can be asked about it stands in world.yaml and templates.yaml, and how it is drawn in drawings.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from components.common.sections import Section, read_yaml
from components.worlds.templated import read_world

HERE = Path(__file__).parent
DRAWN_FROM = HERE / "drawings.yaml"


class Drawing(Section):
    """One drawing of OpenMoji."""

    emoji: str
    mirrored: bool = True
    """Whether the mirrored drawing still means the same."""

    @property
    def hexcode(self) -> str:
        """OpenMoji's file name: the code points of the emoji in hexadecimal."""
        return "-".join(f"{ord(c):04X}" for c in self.emoji)


class Look(Section):
    """How a style draws: a style sheet, a background and at most one image filter."""

    css: str
    background: tuple[int, int, int]
    """sRGB, 0 to 255."""
    filter: Literal["none", "glow", "pixelate", "sepia", "halftone", "cutout"]


class Drawings(Section):
    """The file drawings.yaml."""

    drawings: dict[str, Drawing]
    """By concept."""
    looks: dict[str, Look]
    """By style."""


WORLD = read_world(HERE)
DRAWINGS = Drawings.model_validate(read_yaml(DRAWN_FROM))
