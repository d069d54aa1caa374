"""Draws the images that an evaluation needs, each of them once.

An image is determined by what the U-Net sees: hidden states, adapters and seed. A prompt that no filter flags has the
stock encoder's very hidden states, so with the same adapters its image is the one that was drawn without the filter; and
where adapters are gated by detection, it is the base's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.diffusion.encode import encode
from components.diffusion.sampling import sample
from components.evaluate.params import EvaluateParams
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder
from components.guidance.adapters import load_adapters, use_adapters
from components.guidance.gating import gate_adapters


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
        encode(encoder, self.pipe.tokenizer, prompts, batch=len(prompts))  # detection is that of the last batch
        assert encoder.detection is not None  # set by the forward above
        return [[n for n, hit in zip(active, row, strict=True) if hit] for row in encoder.detection.flagged.tolist()]

    def draw(
        self,
        pictures: Sequence[Picture],
        *,
        filters: Sequence[str] = (),
        adapters: Sequence[str] = (),
        gated: bool = False,
    ) -> np.ndarray:
        """The pictures as (B, H, W, 3) uint8, with the filters and adapters of the named requests acting.

        `gated` lets each adapter act on the prompts alone that its request's filter flags, and never on the empty prompt;
        one whose request has no filter acts on all of them.
        """
        prompts = [p.prompt for p in pictures]
        states, acting = self.states(prompts, filters), self.acting(prompts, adapters, gated=gated)
        keys = [
            self._key(state, names, p.seed, gated=gated)
            for state, names, p in zip(states, acting, pictures, strict=True)
        ]
        missing = [i for i, key in enumerate(keys) if key not in self._drawn and key not in keys[:i]]
        size = self.params.batch
        for start in tqdm(
            range(0, len(missing), size), desc="images", unit="batch", disable=not missing, mininterval=5
        ):
            rows = missing[start : start + size]
            with self._apply([acting[i] for i in rows], gated=gated):
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

    def acting(self, prompts: Sequence[str], adapters: Sequence[str], *, gated: bool) -> list[tuple[str, ...]]:
        """For each prompt which of the named adapters act on it."""
        loaded = [name for name in adapters if name in self.adapters]
        if not gated:
            return [tuple(loaded)] * len(prompts)
        return [
            tuple(name for name in loaded if name in hits or name not in self.filters)
            for hits in self.flagged(prompts, loaded)
        ]

    def _apply(self, acting: Sequence[tuple[str, ...]], *, gated: bool) -> AbstractContextManager[None]:
        """Lets the adapters act on a batch of prompts, and, unless gated, on the empty prompts beside them."""
        if not gated:
            return use_adapters(self.pipe, acting[0])
        names = dict.fromkeys(name for each in acting for name in each)
        nowhere = [False] * len(acting)
        return gate_adapters(self.pipe, {n: torch.tensor(nowhere + [n in each for each in acting]) for n in names})

    @staticmethod
    def _key(state: torch.Tensor, acting: Sequence[str], seed: int, *, gated: bool) -> str:
        """Equal for equal images; with no adapter acting it does not matter what would gate them."""
        facts = (sorted(acting), seed, gated and bool(acting))
        return hashlib.sha256(state.numpy().tobytes() + repr(facts).encode()).hexdigest()
