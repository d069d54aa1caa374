"""Prepares what one adapter is trained on: prompts, their hidden states, and the frozen model's trajectories.

P prompts about the target, R prompts to retain, L token positions, D hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from components.collect.tables import where
from components.common.seeding import stream_seed
from components.diffusion.encode import encode
from components.guidance.adapters import attach, empty_directions, parameters_of, read_along
from components.guidance.closed_form import map_loss, moments, pool, principal_axes, start_in_closed_form
from components.guidance.params import GuidanceParams
from components.guidance.train import Cache, cache_trajectories
from components.requests.requests import Request

NAME = "default"
"""PEFT's name of the adapter while it trains; it is not part of the file."""
ALONE = 0.7
"""Of the prompts about the target those that show it alone."""
NEAR, TWO = 0.125, 0.625
"""Of the prompts to keep those about neighbours, and those that show two concepts."""


class Lesson(NamedTuple):
    """All that training one adapter reads."""

    erase: Cache
    """On trajectories of the target and of the anchor."""
    keep: Cache
    """On trajectories of prompts to retain."""
    target: torch.Tensor
    """(P, L, D) prompts about the target, row by row those of `erase.prompt`."""
    retain: torch.Tensor
    """(R, L, D) prompts to retain, row by row those of `keep.prompt`."""
    uncond: torch.Tensor
    """(1, L, D)"""


def prepare(
    pipe: StableDiffusionPipeline, request_id: str, request: Request, table: pd.DataFrame, settings: GuidanceParams
) -> Lesson:
    """Draws prompts from `table`, never those of the evaluation, and runs the frozen model's trajectories on them."""
    pairs, kept = pick_prompts(table, request_id, settings)
    spoken = pairs["prompt"].tolist()

    def states(prompts: list[str]) -> torch.Tensor:
        return encode(pipe.text_encoder, pipe.tokenizer, prompts)

    uncond, target, retain = states([""]), states(spoken), states(kept)
    wanted = states(pairs["counterpart"].tolist()) if request.anchor else None
    # some states are what the target's prompt draws, some what the anchor's does, so that both ways are covered
    own = len(spoken) - round(settings.anchor_share * len(spoken))
    drawn = target if wanted is None else torch.cat([target[:own], wanted[own:]])
    erase = cache_trajectories(pipe, drawn, wanted, uncond, settings, scope="erase")
    briefly = settings.model_copy(update={"solver_steps": settings.retain_solver_steps})
    keep = cache_trajectories(pipe, retain, retain, uncond, briefly, scope="retain")
    return Lesson(erase, keep, target, retain, uncond)


def join(lessons: Sequence[Lesson]) -> Lesson:
    """Several requests' lessons as one, for one adapter that learns all of them."""

    def shift(caches: list[Cache], sizes: list[int]) -> Cache:
        """The caches end to end, each counting its prompts from where the one before ended."""
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        moved = [cache._replace(prompt=cache.prompt + start) for cache, start in zip(caches, starts, strict=True)]
        return Cache(*(torch.cat(column) for column in zip(*moved, strict=True)))

    return Lesson(
        shift([each.erase for each in lessons], [len(each.target) for each in lessons]),
        shift([each.keep for each in lessons], [len(each.retain) for each in lessons]),
        torch.cat([each.target for each in lessons]),
        torch.cat([each.retain for each in lessons]),
        lessons[0].uncond,
    )


def pick_prompts(table: pd.DataFrame, request_id: str, settings: GuidanceParams) -> tuple[pd.DataFrame, list[str]]:
    """(rows of `table` about the target, prompts to keep), none of the evaluation's.

    Of those about the target most show it alone, every name in every style as often as any other as far as there are prompts;
    half of the rest are in ordinary English, half show something beside it. Their order is random, for trajectories of the
    target are drawn of the first and the anchor's of the last. Of what is kept most shows two concepts, which are the first
    to be lost.
    """
    table = where(table, table["split"] != "evaluate")
    rng = np.random.default_rng(stream_seed(settings.seed, request_id))
    wanted, kept = settings.trajectories, settings.retain_trajectories
    carrying = where(table, table["carries"])
    name = ["spoken", "style"]
    alone = pick_evenly(where(carrying, carrying["role"].isin(("target", "alias"))), name, wanted, rng)
    most = min(len(alone), round(ALONE * wanted))
    spoken = pick_evenly(where(carrying, carrying["role"] == "context"), name, (wanted - most) // 2, rng)
    mixed = pick_evenly(where(carrying, carrying["role"] == "mixed"), name, wanted - most - len(spoken), rng)
    alone = alone.iloc[: wanted - len(spoken) - len(mixed)]  # more of them where the others are few
    near = pick(where(table, table["role"] == "neighbour"), round(NEAR * kept), rng)
    rest = where(table, table["role"].isin(("retain", "anchor")))
    two = pick(where(rest, rest["pair"]), round(TWO * kept), rng)
    one = pick_evenly(where(rest, ~rest["pair"]), ["concepts"], kept - len(near) - len(two), rng)
    about = pd.concat([alone, spoken, mixed])
    return about.iloc[rng.permutation(len(about))], pd.concat([near, two, one])["prompt"].tolist()


class Fresh(NamedTuple):
    """An adapter that is about to be trained."""

    parameters: list[torch.nn.Parameter]
    held: bool
    """Whether it is blind to the empty prompt."""
    axes: torch.Tensor
    """(E, D) along which it reads hidden states; the parameters mean nothing without them."""
    prior: Callable[[], torch.Tensor] | None
    """What is added to the loss of a step, unless its weight is 0."""


def start_adapter(
    pipe: StableDiffusionPipeline,
    request_id: str,
    uncond: torch.Tensor,  # (1, L, D)
    tables: Sequence[pd.DataFrame],  # of each request that the adapter erases
    settings: GuidanceParams,
) -> Fresh:
    """Attaches an adapter named `NAME`, at its start."""
    seed = stream_seed(settings.seed, request_id, "adapter") % 2**31
    attach(pipe.unet, NAME, parameters=settings.parameters, rank=settings.rank, seed=seed)
    given = pool([moments(pipe, table, negative=settings.negative_guidance) for table in tables])
    prior = None
    if settings.start == "closed-form":
        start_in_closed_form(pipe.unet, NAME, given, settings)
        prior = map_loss(pipe.unet, NAME, given, settings) if settings.map_weight else None
    known = empty_directions(uncond)
    axes = principal_axes(given, known if settings.null_space else known[:0], settings)
    read_along(pipe.unet, NAME, axes)
    return Fresh(parameters_of(pipe.unet, NAME), settings.null_space, axes, prior)


def pick_evenly(table: pd.DataFrame, by: list[str], count: int, rng: np.random.Generator) -> pd.DataFrame:
    """At most `count` rows, drawn without replacement: none of a group a second time before all others were drawn once."""
    shuffled = table.iloc[rng.permutation(len(table))]
    turn = shuffled.groupby(by, sort=False).cumcount().to_numpy()
    return shuffled.iloc[np.argsort(turn, kind="stable")[:count]]


def pick(table: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """At most `count` rows, drawn without replacement."""
    rows = rng.permutation(len(table))[:count]
    return table.iloc[np.sort(rows)]
