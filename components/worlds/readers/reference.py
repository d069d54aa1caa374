"""Similarity to reference images as a judge: the user's CLIP or DINO (Caron et al. 2021), of a local transformers folder.

An image shows a name when the mean cosine between its embedding and those of the name's reference images reaches the
threshold. The default, 0.6, is a starting point: qualification on the base's own images says whether it tells the name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel

from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.shared import (
    as_probability,
    load_model,
    model_folder,
    pin,
    read_images,
    side_of,
    threshold_of,
)

THRESHOLD = 0.6
BATCH = 32


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> Reference:
    """The judge in `params.path`, which knows the subjects that have reference images."""
    return Reference(params, subjects)


class Reference:
    """Knows the names that have reference images."""

    def __init__(self, params: ReaderParams, subjects: Sequence[Subject]) -> None:
        folder = model_folder(params)
        self.net = load_model(AutoModel, folder)
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        side = side_of(self.net.config)
        self.sizes = params.sizes or (side // 2, 16 * side)
        self.threshold = threshold_of(params, THRESHOLD)
        self.known = {s.name: self.embed(read_images(s.images)) for s in subjects if s.images}
        self.digest = pin(params, known={name: vectors.tolist() for name, vectors in self.known.items()})

    def knows(self, name: str) -> bool:
        """Whether there are reference images of `name`."""
        return name in self.known

    @torch.no_grad()
    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Images (H, W, 3) uint8 to unit vectors (N, D)."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = self.processor(list(images[start : start + BATCH]), return_tensors="pt").pixel_values
            tower = getattr(self.net, "vision_model", self.net)
            parts.append(F.normalize(tower(pixel_values=pixels).pooler_output, dim=-1).numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says."""
        if not len(images):
            return np.zeros((0, len(names)))
        shown = self.embed(list(images))
        near = np.stack([(shown @ self.known[name].T).mean(1) for name in names], 1)
        return as_probability(near, self.threshold, low=-1.0)
