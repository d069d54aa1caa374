"""Images between uint8 arrays and what a network takes.

B images, H and W pixels
"""

from __future__ import annotations

import numpy as np
import torch


def to_model(images: np.ndarray) -> torch.Tensor:
    """(B, 64, 64, 3) uint8 to (B, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
