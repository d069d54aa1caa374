"""The CLIP score (Hessel et al. 2021): how near an image is to its prompt in the space the text encoder was trained in.

    N images with a prompt each, P = 256 joint

The image tower never saw a generated image, yet it learnt beside the text encoder that steers the generator; so the score
compares models that share that encoder, and says less of quality than the judge does. No edit touches it: prompts are read
by the stock encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from components.common.artifacts import read_artifact
from components.diffusion.images import to_model

FORMAT = "expunge/clip-heads"


class ClipHeads(nn.Module):
    """What the contrast needs beside the text encoder: an image tower and the projections into the joint space."""

    def __init__(self, hidden: int = 256, joint: int = 256, teacher: int = 384) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.image_tower = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, joint))
        self.text_projection = nn.Linear(hidden, joint, bias=False)
        self.teacher_projection = nn.Linear(hidden, teacher)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))

    def embed_image(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) in [-1, 1] to unit vectors (B, P)."""
        return F.normalize(self.image_tower(x), dim=-1)

    def embed_text(self, pooled: torch.Tensor) -> torch.Tensor:
        """The encoder's EOS state (B, D) to unit vectors (B, P)."""
        return F.normalize(self.text_projection(pooled), dim=-1)


class ClipScore:
    """Scores images against prompts."""

    def __init__(self, heads: ClipHeads, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.heads, self.encoder, self.tokenizer = heads.eval(), encoder, tokenizer

    @classmethod
    def load(cls, folder: Path, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> ClipScore:
        """The heads in `folder` beside the text encoder that they were trained with; `ArtifactError` for altered bytes."""
        tensors, _ = read_artifact(folder, FORMAT)
        heads = ClipHeads()
        heads.load_state_dict(tensors)
        return cls(heads, encoder, tokenizer)

    @torch.no_grad()
    def __call__(self, images: np.ndarray, prompts: Sequence[str], *, batch: int = 256) -> np.ndarray:
        """cos(image, prompt) of each pair: (N, 64, 64, 3) uint8 and N prompts to (N,), in [-1, 1]."""
        parts = []
        for start in range(0, len(images), batch):
            ids = self.tokenizer(
                list(prompts[start : start + batch]), padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            text = self.heads.embed_text(self.encoder(ids).pooler_output)  # (B, P)
            image = self.heads.embed_image(to_model(images[start : start + batch]))
            parts.append((image * text).sum(1))
        return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)
