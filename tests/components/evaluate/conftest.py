"""A tiny eraser under attack, with a judge that answers by brightness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from components.collect.record import RequestRecord
from components.eraser import Eraser
from components.evaluate.attacks.attempts import Target, TargetPrompt
from components.evaluate.attacks.victim import Victim
from components.guidance.adapters import attach, write_adapter
from components.requests.requests import Request
from components.worlds.base import Judgement

HOOKPOINT, WIDTH = "encoder.layers.0", 32
PROMPTS = tuple(
    TargetPrompt(f"a cat {where}", "cat", f"a dog {where}") for where in ("here", "there", "in a house", "on a tree")
)


@pytest.fixture
def target():
    """A cat and four plain prompts of it."""
    return Target("r", ("cat", "kitty"), PROMPTS, related=("lion",))


@pytest.fixture
def eraser(tiny_pipe, spelt_filter, tmp_path, make_tiny_unet):
    """Request `r` erases the cat: a filter that edits, and an adapter that changes something."""
    unet = make_tiny_unet()
    for parameter in attach(unet, "r", rank=2):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    write_adapter(tmp_path / "r", unet, "r", params={}, inputs={}, facts={})
    item = spelt_filter(("cat", "kitty"), WIDTH)._replace(directions=torch.full((4, WIDTH), 0.5))
    return Eraser(
        tiny_pipe, {"r": item}, HOOKPOINT, {"r": tmp_path / "r"}, guidance_scale=2.0, solver_steps=2, guard=False
    )


@pytest.fixture
def victim(eraser, target):
    """The default variant of it."""
    return Victim(eraser, target, "gated")


@pytest.fixture
def record():
    """The record of request `r`."""
    names = dict.fromkeys(("train", "select", "calibrate", "evaluate"), ("cat", "kitty"))
    request = Request(target="cat", kind="object", aliases=("kitty",), anchor="dog", neighbours=("lion",))
    return RequestRecord(
        id="r",
        request=request,
        names=names,
        misspellings=(),
        labels=("cat",),
        is_style=False,
        avoid=("cat", "dog", "lion"),
    )


class BrightJudge:
    """Finds the cat where the first pixel's red is odd."""

    digest = "bright"
    concept_names, style_names = ("cat", "dog"), ("photo",)

    def __call__(self, images):
        """Judges (N, H, W, 3)."""
        odd = (images[:, 0, 0, 0] % 2).astype(float)
        return Judgement(
            np.stack([odd, 1 - odd], 1),
            np.ones((len(images), 1)),
            np.zeros(len(images)),
            self.concept_names,
            self.style_names,
        )


@pytest.fixture
def judge():
    """A judge that is arbitrary, but always the same."""
    return BrightJudge()
