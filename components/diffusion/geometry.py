"""The size of a pipeline's images and its scheduler, from the folder's configurations, without reading a weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_geometry(folder: Path) -> tuple[int, dict[str, Any]]:
    """(side of the images in pixels, the scheduler's config) of a pipeline folder."""
    names = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    unet, vae, scheduler = (json.loads((folder / name).read_text(encoding="utf-8")) for name in names)
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1), scheduler
