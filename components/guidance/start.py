"""An adapter before its first step: attached, set to the closed form, and confined to the axes in which it is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from components.diffusion.text import towers_of
from components.guidance import recipe
from components.guidance.adapters import Axes, attach, empty_directions, parameters_of, parametrize_in_axes
from components.guidance.closed_form import closed_form_loss, moments, principal_axes, start_in_closed_form
from components.guidance.params import GuidanceParams

NAME = "default"
"""PEFT's name of the adapter while it trains; it is not part of the file."""


class InitialAdapter(NamedTuple):
    """An adapter that is about to be trained."""

    parameters: list[torch.nn.Parameter]
    axes: Axes
    """The axes along which it reads hidden states; without them the parameters mean nothing."""
    null_space: bool
    """Whether it cannot read the empty prompt, whose output then needs no pass."""
    closed_form_loss: Callable[[], torch.Tensor]
    """What the closed form minimises, of the parameters as they are."""


def start_adapter(pipe: StableDiffusionPipeline, table: pd.DataFrame, params: GuidanceParams) -> InitialAdapter:
    """Attaches an adapter named `NAME` to the U-Net and starts it in closed form on the prompts of `table`."""
    attach(pipe.unet, NAME, rank=params.rank)
    instant = not params.steps  # training, which takes a minute, starts from exact states
    given = moments(pipe, table, bf16=instant and params.precision == "bf16")
    weights = {"retain_weight": recipe.START_RETAIN_WEIGHT, "uncond_weight": recipe.START_UNCOND_WEIGHT}
    start_in_closed_form(pipe.unet, NAME, given, rank=params.rank, **weights)
    loss = closed_form_loss(pipe.unet, NAME, given, **weights)
    null_space = params.hold == "null-space"
    empty = empty_directions(towers_of(pipe).encode([""]).states)
    axes = parametrize_in_axes(pipe.unet, NAME, principal_axes(given, empty if null_space else empty[:0], **weights))
    return InitialAdapter(parameters_of(pipe.unet, NAME), axes, null_space, loss)
