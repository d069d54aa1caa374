"""Compares what can be done to a flagged prompt, on images: is the target gone, the anchor drawn, the rest retained?

B prompts, L token positions, D = d_in, S own features

replace        the mean difference to the anchor, at all positions from the target on, or at some of them
zero           the own features switched off, the SAE's error retained
flip           the own features times -8, the SAE's error retained
reconstruct    ItD as published: features times -8, every position but BOS replaced by its whole reconstruction
anchor's own   no edit: the same prompt, written about the anchor; the best that a replacement can reach
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.diffusion.encode import content_mask, special_tokens
from components.diffusion.params import BaseParams
from components.diffusion.sampling import sample
from components.diffusion.text import towers_of
from components.evaluate.measure import anchored_in, erased_of
from components.evaluate.metrics import Metric, proportion, rate_of
from components.evaluate.page import grid
from components.filter.artifact import RequestFilter
from components.filter.edit import codes, delta, evidence, find_target
from components.filter.positions import POSITION_CLASSES
from components.sae.model import SparseAutoencoder
from components.worlds.base import PRESENT, WorldJudge
from research.filter.detection import FLIP

Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden (B, L, D), tokens (B, L)) to hidden (B, L, D)."""
GAIN = {"zero": -1.0, "flip": FLIP - 1.0}
"""What each adds for a unit of an own feature's code, along its decoder row."""
OWN = "the anchor's own prompt"
_BATCH = 32  # images


class Prompts(NamedTuple):
    """Prompts that all name the target, with what the base draws for them."""

    texts: list[str]
    concepts: list[frozenset[str]]
    counterparts: list[str]
    """The same prompts about the anchor, empty without one."""


def edits_of(item: RequestFilter, sae: SparseAutoencoder, eos: int) -> dict[str, Edit]:
    """Every edit of one request by name; `none` is the base."""

    def at(*classes: str, gain: float | None = None) -> Edit:
        mask = torch.tensor([float(c in classes) for c in POSITION_CLASSES])
        directions = item.directions if gain is None else torch.zeros_like(item.directions)
        changed = item._replace(classes=mask, directions=directions, gain=torch.tensor(gain or 0.0))

        def change(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            code = codes(hidden, changed)
            scores = evidence(code, find_target(ids, changed), changed)
            return hidden + delta(code, scores, content_mask(ids, eos), changed)

        return change

    def reconstruct(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - it ignores positions
        code = sae.encode(hidden)
        code[..., item.features[item.own > 0]] *= FLIP
        out = sae.decode(code)
        out[:, 0] = hidden[:, 0]
        return out

    everywhere = tuple(POSITION_CLASSES)
    return {
        "none": lambda hidden, ids: hidden,  # noqa: ARG005 - one signature for all
        "replace": at(*everywhere),
        "replace, target only": at("target"),
        "replace, target and later words": at("target", "later"),
        "replace, EOS and padding only": at("eos", "padding"),
        "zero": at(*everywhere, gain=GAIN["zero"]),
        "flip": at(*everywhere, gain=GAIN["flip"]),
        "reconstruct": reconstruct,
    }


def pick(table: pd.DataFrame, request_id: str, roles: tuple[str, ...], count: int) -> Prompts:
    """At most `count` evaluation prompts of those roles."""
    chosen = (table["request"] == request_id) & (table["split"] == "evaluate") & table["role"].isin(list(roles))
    rows = where(table, chosen)
    rows = rows.sample(min(count, len(rows)), random_state=stream_seed(0, request_id, *roles) % 2**32)
    return Prompts(rows["prompt"].tolist(), [frozenset(c) for c in rows["concepts"]], rows["counterpart"].tolist())


def compare_edits(
    pipe: StableDiffusionPipeline,
    judge: WorldJudge,
    filters: Mapping[str, RequestFilter],
    sae: SparseAutoencoder,
    records: Mapping[str, RequestRecord],
    table: pd.DataFrame,
    base: BaseParams,
    *,
    count: int,  # prompts of each of the two groups
    seed: int,
    pictures: list[tuple[str, np.ndarray]],  # filled with a grid for each request
) -> dict[str, dict[str, dict[str, Metric]]]:
    """For each request and edit, on single and on mixed prompts alike, each with its own seed; no detection is involved.

    `ua` and `anchor_rate` are of the single prompts; `ira` of the mixed ones, whether the other concepts are still found;
    `recognisable` of both.
    """
    out: dict[str, dict[str, dict[str, Metric]]] = {}
    for request_id, item in filters.items():
        record = records[request_id]
        groups = [pick(table, request_id, roles, count) for roles in (("target", "alias"), ("mixed",))]
        others = [shown - set(record.labels) for shown in groups[1].concepts]
        rows, out[request_id] = [], {}
        edits = edits_of(item, sae, special_tokens(towers_of(pipe).first.tokenizer)[0])
        if record.anchor:
            edits[OWN] = edits["none"]
        for name, change in tqdm(edits.items(), desc=f"edits of {record.request.target}", unit="edit"):
            images = [
                draw_edited(pipe, base, group.counterparts if name == OWN else group.texts, change, seed=seed)
                for group in groups
            ]
            rows.append(np.concatenate([images[0][:8], images[1][:4]]))
            single, mixed = judge(images[0]), judge(images[1])
            out[request_id][name] = {
                "ua": proportion(erased_of(single, record)),
                "anchor_rate": proportion(anchored_in(single, record)),
                "ira": proportion(rate_of(mixed.present(), others)),
                "recognisable": proportion(np.concatenate([single.none, mixed.none]) < PRESENT),
            }
        pictures.append((record.request.target.replace(" ", "-"), grid(rows)))
    return out


def draw_edited(
    pipe: StableDiffusionPipeline, base: BaseParams, texts: list[str], change: Edit, *, seed: int
) -> np.ndarray:
    """One image of each prompt with `change` at the hookpoint, whatever a filter would decide."""
    towers = towers_of(pipe, base.hookpoints)
    encoded = towers.tokenize(texts)
    with torch.no_grad():
        states = towers.run(encoded, lambda hidden: change(hidden, encoded.input_ids)).to(torch.device("cpu"))
    empty = towers.unconditional()
    seeds = [stream_seed(seed, "edits", i) % 2**31 for i in range(len(texts))]
    return sample(pipe, states, empty, seeds, steps=base.solver_steps, guidance_scale=base.guidance_scale, batch=_BATCH)
