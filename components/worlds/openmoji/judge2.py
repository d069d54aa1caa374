"""The second judge of the embedded world: another architecture, trained on other renders with other distortions.

    N images, H = W = 64 pixels, C concepts, S styles, D channels

Where both judges agree, no quirk of one network decides. It is a residual network that
takes the likeliest place for a concept; the first judge is a plain stack of convolutions that sums over places.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from components.worlds.openmoji.judge import Judge


class Residual(nn.Module):
    """Two 3×3 convolutions beside a 1×1 one, or beside nothing where neither width nor size changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.GELU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        same = before == after and stride == 1
        self.beside = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) to (N, D', h', w')."""
        return nn.functional.gelu(self.beside(x) + self.body(x))


class ResidualNet(nn.Module):
    """Five residual blocks; a concept counts where it is likeliest, style and recognisability by pooling."""

    temperature: torch.Tensor
    """(3,)"""

    def __init__(self, concepts: int, styles: int) -> None:
        super().__init__()
        plan = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))
        self.body = nn.Sequential(*(Residual(*widths) for widths in plan))
        self.concept = nn.Conv2d(128, concepts, 1)
        assert self.concept.bias is not None
        nn.init.constant_(self.concept.bias, -4.0)  # most concepts are absent
        self.rest = nn.Linear(2 * 128, styles + 1)
        self.register_buffer("temperature", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, 64, 64) in [-1, 1] to uncalibrated logits (N, C), (N, S), (N,)."""
        h = self.body(x)  # (N, 128, 8, 8)
        rest = self.rest(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        return self.concept(nn.functional.avg_pool2d(h, 3, 1)).amax((2, 3)), rest[:, :-1], rest[:, -1]


def load_second_judge(folder: Path) -> Judge:
    """The second judge in `folder`; `ArtifactError` if it is missing, altered, of another format, or not labelled."""
    return Judge.load(folder, ResidualNet)
