"""The judge: an independent classifier of the world's images, pinned by digest, that never saw the generator.

    B images, H = W = 64 pixels, C concepts, S styles

It answers which concepts are in an image (multi-label, so that pairs work), in which style, and whether there is
anything recognisable at all. Every answer is a probability, calibrated by one temperature a head (Guo et al. 2017).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from components.common.artifacts import read_artifact
from components.diffusion.images import to_model
from components.worlds.openmoji import world

FORMAT = "expunge/judge"
PRESENT = 0.5
"""A concept counts as in the image when its probability reaches this."""


class Judgement(NamedTuple):
    """What the judge says of B images."""

    concepts: torch.Tensor
    """(B, C) probability that each concept is in the image."""
    styles: torch.Tensor
    """(B, S) probability of each style; rows sum to 1."""
    none: torch.Tensor
    """(B,) probability that nothing recognisable is in the image."""

    def top(self) -> list[str]:
        """For each image the likeliest concept, or "none"."""
        best = self.concepts.argmax(1)
        return ["none" if n >= PRESENT else world.CONCEPT_NAMES[i] for n, i in zip(self.none, best, strict=True)]

    def present(self) -> list[frozenset[str]]:
        """For each image every concept found in it; empty when the image is unrecognisable."""
        found = (self.concepts >= PRESENT) & (self.none < PRESENT)[:, None]
        return [frozenset(np.asarray(world.CONCEPT_NAMES)[row.numpy()].tolist()) for row in found]

    def style(self) -> list[str]:
        """For each image its likeliest style."""
        return [world.STYLE_NAMES[i] for i in self.styles.argmax(1)]


class JudgeNet(nn.Module):
    """A small convolutional network: logits of concepts, styles and none, and one temperature for each head."""

    temperature: torch.Tensor
    """(3,)"""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        plan = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 192, 2), (192, 192, 1))
        for before, after, stride in plan:
            blocks += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*blocks)
        self.concept = nn.Conv2d(192, len(world.CONCEPTS), 1)  # a map, so that a half-size drawing counts whole
        assert self.concept.bias is not None
        nn.init.constant_(self.concept.bias, -7.0)  # most concepts are absent: start there, not at one half
        self.rest = nn.Linear(2 * 192, len(world.STYLES) + 1)
        self.register_buffer("temperature", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, 64, 64) in [-1, 1] to uncalibrated logits (B, C), (B, S), (B,)."""
        h = self.body(x)  # (B, 192, 4, 4)
        concept = torch.logsumexp(self.concept(h).flatten(2), dim=2)
        rest = self.rest(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        return concept, rest[:, :-1], rest[:, -1]


class Judge:
    """The pinned judge; `Judge.load` refuses any bytes but those that its sidecar names."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.eval()

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Opens a judge artifact; `ArtifactError` if it is missing, altered or of another format or world."""
        tensors, _ = read_artifact(folder, FORMAT)
        net = JudgeNet()
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        return cls(net)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, *, batch: int = 256) -> Judgement:
        """Judges (B, 64, 64, 3) uint8 images."""
        parts = []
        for start in range(0, len(images), batch):
            concept, style, none = self.net(to_model(images[start : start + batch]))
            t = self.net.temperature
            parts.append(((concept / t[0]).sigmoid(), (style / t[1]).softmax(1), (none / t[2]).sigmoid()))
        return Judgement(*(torch.cat(column) for column in zip(*parts, strict=True)))
