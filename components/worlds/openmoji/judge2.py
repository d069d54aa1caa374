"""The second judge of the embedded world: another architecture, trained on other renders with other distortions.

    N images, H = W = 64 pixels, C concepts, S styles, T = 64 patches, D = 128

Where both judges agree, no quirk of one network decides. It is a compact transformer (Hassani et al. 2021, arXiv
2104.05704): a convolutional stem, then attention among patches, where the first judge has convolutions alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from components.worlds.openmoji.judge import Judge


class PatchNet(nn.Module):
    """A stem of three strided convolutions, four transformer layers, and the heads that the first judge has too."""

    temperature: torch.Tensor
    """(3,)"""

    def __init__(self, concepts: int, styles: int, *, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, width)):
            stem += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.GELU()]
        self.stem = nn.Sequential(*stem)
        self.place = nn.Parameter(torch.zeros(1, 64, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.concept = nn.Linear(width, concepts)
        nn.init.constant_(self.concept.bias, -8.0)  # most concepts are absent, and 64 patches are summed
        self.rest = nn.Linear(2 * width, styles + 1)
        self.register_buffer("temperature", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, 64, 64) in [-1, 1] to uncalibrated logits (N, C), (N, S), (N,)."""
        h = self.layers(self.stem(x).flatten(2).transpose(1, 2) + self.place)  # (N, T, D)
        rest = self.rest(torch.cat([h.mean(1), h.amax(1)], 1))
        return torch.logsumexp(self.concept(h), 1), rest[:, :-1], rest[:, -1]


def load_second_judge(folder: Path) -> Judge:
    """The second judge in `folder`; `ArtifactError` if it is missing, altered, of another format, or not labelled."""
    return Judge.load(folder, PatchNet)
