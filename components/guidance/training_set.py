"""What one adapter is trained on: prompts, their hidden states, and the frozen model's trajectories.

P prompts about the target, R prompts to retain
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from diffusers import StableDiffusionPipeline

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.diffusion.conditioning import Conditioning, joined
from components.diffusion.text import towers_of
from components.guidance import recipe
from components.guidance.params import GuidanceParams
from components.guidance.trajectories import TrajectoryCache, cache_trajectories


class TrainingSet(NamedTuple):
    """All that training one adapter reads."""

    erase: TrajectoryCache
    """On trajectories of the target and of the anchor."""
    retain: TrajectoryCache
    """On trajectories of prompts to retain."""
    target: Conditioning
    """Of P prompts about the target, row by row those of `erase.prompt`."""
    retained: Conditioning
    """Of R prompts to retain, row by row those of `retain.prompt`."""
    uncond: Conditioning
    """Of the unconditional branch, one row."""


def prepare(
    pipe: StableDiffusionPipeline,
    record: RequestRecord,
    table: pd.DataFrame,  # the request's prompts, as `read_table` gives them
    params: GuidanceParams,
    *,
    guidance_scale: float,
) -> TrainingSet:
    """Draws prompts from `table`, never those of the evaluation, and runs the frozen model's trajectories on them."""
    about, retained = pick_prompts(
        table, record.id, seed=params.seed, count=recipe.TRAJECTORIES, retain_count=recipe.RETAIN_TRAJECTORIES
    )
    towers = towers_of(pipe)
    uncond, target, retain = towers.unconditional(), towers.encode(about["prompt"].tolist()), towers.encode(retained)
    wanted = towers.encode(about["counterpart"].tolist()) if record.anchor else None
    # the first trajectories draw the target's prompts, the last their counterparts about the anchor
    own = len(about) - round(recipe.ANCHOR_SHARE * len(about))
    drawn = target if wanted is None else joined([target.rows(slice(own)), wanted.rows(slice(own, None))])
    erase_cache = cache_trajectories(
        pipe, drawn, wanted, uncond, params,
        scope="erase", solver_steps=recipe.SOLVER_STEPS, guidance_scale=guidance_scale,
    )  # fmt: skip
    retain_cache = cache_trajectories(
        pipe, retain, retain, uncond, params,
        scope="retain", solver_steps=recipe.RETAIN_SOLVER_STEPS, guidance_scale=guidance_scale,
    )  # fmt: skip
    return TrainingSet(erase_cache, retain_cache, target, retain, uncond)


def pick_prompts(
    table: pd.DataFrame,
    request_id: str,
    *,
    seed: int,
    count: int,
    retain_count: int,
) -> tuple[pd.DataFrame, list[str]]:
    """(`count` rows of `table` about the target, `retain_count` prompts to retain), none of the evaluation's.

    Most rows about the target show it alone, every name in every style as often as any other as far as there are prompts;
    half of the rest are in everyday English, half show something beside it. Their order is random, for the first and the
    last are used differently. Most prompts to retain show two concepts, which are the first to be lost.
    """
    table = where(table, table["split"] != "evaluate")
    rng = np.random.default_rng(stream_seed(seed, request_id))
    naming = where(table, table["names_target"])
    name = ["name_used", "style"]
    alone = pick_evenly(where(naming, naming["role"].isin(("target", "alias"))), name, count, rng)
    most = min(len(alone), round(recipe.ALONE_SHARE * count))
    context = pick_evenly(where(naming, naming["role"] == "context"), name, (count - most) // 2, rng)
    mixed = pick_evenly(where(naming, naming["role"] == "mixed"), name, count - most - len(context), rng)
    alone = alone.iloc[: count - len(context) - len(mixed)]  # more of them where the others are few
    near = pick(where(table, table["role"] == "neighbour"), round(recipe.NEIGHBOUR_SHARE * retain_count), rng)
    rest = where(table, table["role"].isin(("retain", "anchor")))
    two = pick(where(rest, rest["pair"]), round(recipe.PAIR_SHARE * retain_count), rng)
    one = pick_evenly(where(rest, ~rest["pair"]), ["concepts"], retain_count - len(near) - len(two), rng)
    about = pd.concat([alone, context, mixed])
    return about.iloc[rng.permutation(len(about))], pd.concat([near, two, one])["prompt"].tolist()


def pick_evenly(table: pd.DataFrame, by: list[str], count: int, rng: np.random.Generator) -> pd.DataFrame:
    """At most `count` rows, drawn without replacement: none of a group a second time before all others were drawn once."""
    shuffled = table.iloc[rng.permutation(len(table))]
    turn = shuffled.groupby(by, sort=False).cumcount().to_numpy()
    return shuffled.iloc[np.argsort(turn, kind="stable")[:count]]


def pick(table: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """At most `count` rows, drawn without replacement."""
    rows = rng.permutation(len(table))[:count]
    return table.iloc[np.sort(rows)]
