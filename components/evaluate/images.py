"""Draws the images that an evaluation needs, each of them once.

An image is determined by what the U-Net sees: hidden states, adapters and seed. A prompt that no filter flags has the
stock encoder's very hidden states, so with the same adapters its image is the one that was drawn without the filter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.common.config import EvaluateParams
from components.diffusion import encode, sample
from components.features import RequestFilter
from components.filter import FilteredTextEncoder
from components.guidance import load_adapters, use_adapters


class Picture(NamedTuple):
    """One image to draw."""

    prompt: str
    seed: int


class Studio:
    """A pipeline, its filters and its adapters, and every image that it has drawn so far."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        filters: Mapping[str, RequestFilter],
        hookpoint: str,
        adapters: Mapping[str, Path],
        params: EvaluateParams,
    ) -> None:
        self.pipe, self.filters, self.hookpoint, self.params = pipe, filters, hookpoint, params
        self.adapters = tuple(adapters)
        load_adapters(pipe, adapters)
        self.uncond = encode(pipe.text_encoder, pipe.tokenizer, [""])
        self._drawn: dict[str, np.ndarray] = {}

    def states(self, prompts: Sequence[str], filters: Sequence[str]) -> torch.Tensor:
        """Hidden states (B, L, D) of `prompts` under the filters of the named requests."""
        active = {name: self.filters[name] for name in filters if name in self.filters}
        encoder = (
            FilteredTextEncoder(self.pipe.text_encoder, active, self.hookpoint) if active else self.pipe.text_encoder
        )
        unique = list(dict.fromkeys(prompts))
        states = encode(encoder, self.pipe.tokenizer, unique)
        return states[[unique.index(p) for p in prompts]]

    def flagged(self, prompts: Sequence[str], filters: Sequence[str]) -> list[list[str]]:
        """For each prompt the requests, among those named, whose filter flags it."""
        active = {name: self.filters[name] for name in filters if name in self.filters}
        encoder = FilteredTextEncoder(self.pipe.text_encoder, active, self.hookpoint)
        encode(encoder, self.pipe.tokenizer, prompts)
        assert encoder.detection is not None  # set by the forward above
        return [[n for n, hit in zip(active, row, strict=True) if hit] for row in encoder.detection.flagged.tolist()]

    def draw(
        self, pictures: Sequence[Picture], *, filters: Sequence[str] = (), adapters: Sequence[str] = ()
    ) -> np.ndarray:
        """The pictures as (B, H, W, 3) uint8, with the filters and adapters of the named requests acting."""
        acting = [name for name in adapters if name in self.adapters]
        states = self.states([p.prompt for p in pictures], filters)
        keys = [self._key(state, acting, p.seed) for state, p in zip(states, pictures, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._drawn]
        missing = [i for j, i in enumerate(missing) if keys[i] not in {keys[m] for m in missing[:j]}]
        size = self.params.batch
        with use_adapters(self.pipe, acting):
            for start in tqdm(
                range(0, len(missing), size), desc="images", unit="batch", disable=not missing, mininterval=5
            ):
                rows = missing[start : start + size]
                images = sample(
                    self.pipe,
                    states[rows],
                    self.uncond,
                    [pictures[i].seed for i in rows],
                    steps=self.params.solver_steps,
                    guidance_scale=self.params.guidance_scale,
                    batch=size,
                )
                self._drawn |= {keys[i]: image for i, image in zip(rows, images, strict=True)}
        return np.stack([self._drawn[key] for key in keys])

    @staticmethod
    def _key(state: torch.Tensor, acting: Sequence[str], seed: int) -> str:
        return hashlib.sha256(state.numpy().tobytes() + repr((sorted(acting), seed)).encode()).hexdigest()
