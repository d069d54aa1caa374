"""The second judge of the embedded world: another architecture, trained on other renders with other distortions.

    N images, H = W = 64 pixels, C concepts, S styles, D channels

Where both judges agree, no quirk of one network decides. It is a residual network over patches, with group normalisation
and pooling before its answers; the first judge is a plain stack of convolutions that answers place by place.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from components.worlds.openmoji.judge import Judge


class Residual(nn.Module):
    """x + two normalised 3×3 convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [nn.GroupNorm(8, width), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1)]
        self.body = nn.Sequential(*parts, nn.GroupNorm(8, width), nn.GELU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) to the same shape."""
        return x + self.body(x)


class ResidualNet(nn.Module):
    """Patches of 4×4 pixels, residual blocks, pooling, and one linear layer for all answers."""

    temperature: torch.Tensor
    """(3,)"""

    def __init__(self, concepts: int, styles: int) -> None:
        super().__init__()
        self.concepts = concepts
        self.body = nn.Sequential(
            nn.Conv2d(3, 64, 4, 4), Residual(64), Residual(64), nn.Conv2d(64, 128, 2, 2), Residual(128),
            nn.GroupNorm(8, 128), nn.GELU(), nn.Conv2d(128, 192, 2, 2), nn.GroupNorm(8, 192), nn.GELU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * 192, concepts + styles + 1)
        nn.init.constant_(self.head.bias[:concepts], -4.0)  # most concepts are absent
        self.register_buffer("temperature", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, 64, 64) in [-1, 1] to uncalibrated logits (N, C), (N, S), (N,)."""
        h = self.body(x)  # (N, 192, 4, 4)
        said = self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        return said[:, : self.concepts], said[:, self.concepts : -1], said[:, -1]


def load_second_judge(folder: Path) -> Judge:
    """The second judge in `folder`; `ArtifactError` if it is missing, altered, of another format, or not labelled."""
    return Judge.load(folder, ResidualNet)
