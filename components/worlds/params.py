"""Sections `world` and `judge`: which world requests are about, and what judges its images."""

from __future__ import annotations

from pathlib import Path

from components.common.sections import Section

WorldName = str
"""A folder beside this file; outside of dvc also the path of one that holds a world.yaml."""


class JudgeParams(Section):
    """What measures the base and every variant."""

    path: Path
    """Folder of the judge artifact."""
    clip: Path | None = None
    """Folder of the image tower and projections that the text encoder was trained with, for CLIP scores; none without it."""
