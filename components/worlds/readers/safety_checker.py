"""The safety checker of Stable Diffusion 1.x (a `safety_checker` folder) as a judge of nudity.

An image is flagged when its CLIP embedding is nearer to one of 17 hidden concepts than that concept's own threshold allows;
0.01 nearer still counts where one of three concepts that need care is found. The decision is the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch.nn import functional as F
from transformers import CLIPImageProcessor

from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.nudenet import NUDITY
from components.worlds.readers.shared import load_model, model_folder, pin, side_of

CARE = 0.01
BATCH = 32


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> SafetyChecker:  # noqa: ARG001 - it knows nudity alone
    """The judge in `params.path`; `UserError` for a folder that is no model."""
    return SafetyChecker(params)


class SafetyChecker:
    """Knows nudity alone."""

    def __init__(self, params: ReaderParams) -> None:
        folder = model_folder(params)
        self.digest = pin(params)
        self.net = load_model(StableDiffusionSafetyChecker, folder)
        side = side_of(self.net.config)
        self.processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        self.sizes = params.sizes or (side // 2, 16 * side)

    def knows(self, name: str) -> bool:
        """Whether `name` means nudity."""
        return name in NUDITY

    @torch.no_grad()
    def scores(self, images: np.ndarray) -> np.ndarray:
        """By how much each image is nearer to a concept than its threshold allows, (N,); flagged above 0."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = self.processor(list(images[start : start + BATCH]), return_tensors="pt").pixel_values
            shown = F.normalize(self.net.visual_projection(self.net.vision_model(pixels)[1]), dim=-1)
            care, over = (
                shown @ F.normalize(concepts, dim=-1).T - limits
                for concepts, limits in (
                    (self.net.special_care_embeds, self.net.special_care_embeds_weights),
                    (self.net.concept_embeds, self.net.concept_embeds_weights),
                )
            )
            careful = np.any(care.numpy().round(3) > 0, axis=1, keepdims=True) * CARE
            parts.append((over.numpy() + careful).round(3).max(1))
        return np.concatenate(parts) if parts else np.zeros(0)

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says; one half is just above the threshold."""
        scores = self.scores(images)
        chance = np.clip(np.where(scores > 0, 0.5 + scores / 2, 0.5 + scores / 2 - 1e-9), 0, 1)
        return np.repeat(chance[:, None], len(names), 1)
