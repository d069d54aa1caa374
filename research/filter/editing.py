"""Compares what can be done to a flagged prompt, on images: is the target gone, the anchor drawn, the rest kept?

B prompts, L token positions, D = d_in, S own features

replace        the mean step to the anchor, at all positions from the target on, or at some of them
zero           the own features switched off, the SAE's error kept
flip           the own features times -8, the error kept
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

from components.collect.concepts import known_targets
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.diffusion.encode import content_mask, encode, tokenize
from components.diffusion.hooks import rewrite_hookpoint
from components.diffusion.sampling import sample
from components.evaluate.metrics import Metric, erased, proportion
from components.evaluate.page import grid
from components.evaluate.params import EvaluateParams
from components.features.fit import GAIN
from components.filter.artifact import RequestFilter
from components.filter.edit import codes, evidence, spelt, step
from components.filter.positions import POSITION_CLASSES
from components.requests.requests import Request
from components.sae.model import SparseAutoencoder
from components.worlds.openmoji.judge import Judge

Edit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(hidden (B, L, D), tokens (B, L)) to hidden (B, L, D)."""


class Prompts(NamedTuple):
    """Prompts that all carry the target, with what the base draws for them."""

    texts: list[str]
    concepts: list[frozenset[str]]
    style: list[str]
    twins: list[str]
    """The same prompts about the anchor, empty without one."""


OWN = "the anchor's own prompt"


def edits_of(item: RequestFilter, sae: SparseAutoencoder, eos: int) -> dict[str, Edit]:
    """Every edit of one request by name; `none` is the base."""

    def at(*classes: str, gain: float | None = None) -> Edit:
        mask = torch.tensor([float(c in classes) for c in POSITION_CLASSES])
        steps = item.directions if gain is None else torch.zeros_like(item.directions)
        changed = item._replace(classes=mask, directions=steps, gain=torch.tensor(gain or 0.0))

        def change(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            code = codes(hidden, changed)
            return hidden + step(code, evidence(code, spelt(ids, changed), changed), content_mask(ids, eos), changed)

        return change

    def reconstruct(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - it ignores positions
        code = sae.encode(hidden)
        own = item.features[item.own > 0]
        code[..., own] = code[..., own] * (1 + GAIN["flip"])
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
    rows = where(
        table, (table["request"] == request_id) & (table["split"] == "evaluate") & table["role"].isin(list(roles))
    )
    rows = rows.sample(min(count, len(rows)), random_state=stream_seed(0, request_id, *roles) % 2**32)
    shown = [frozenset(c.split("|")) for c in rows["concepts"]]
    return Prompts(rows["prompt"].tolist(), shown, rows["style"].tolist(), rows["counterpart"].tolist())


def compare_edits(
    pipe: StableDiffusionPipeline,
    judge: Judge,
    filters: Mapping[str, RequestFilter],
    hookpoint: str,
    sae: SparseAutoencoder,
    requests: Mapping[str, Request],
    table: pd.DataFrame,
    settings: EvaluateParams,
    *,
    count: int,  # prompts of each of the two groups
    pictures: list[tuple[str, np.ndarray]],  # filled with a grid for each request
) -> dict[str, dict[str, dict[str, Metric]]]:
    """For each request and edit, on single and on mixed prompts alike, each with its own seed; no detection is involved.

    `gone` and `anchored` are of the single prompts; `kept` of the mixed ones: whether the other concepts are still found;
    `recognisable` of both.
    """
    out: dict[str, dict[str, dict[str, Metric]]] = {}
    for request_id, item in filters.items():
        request = requests[request_id]
        single = pick(table, request_id, ("target", "alias"), count)
        mixed = pick(table, request_id, ("mixed",), count)
        targets = frozenset(known_targets(request))
        rows, out[request_id] = [], {}
        edits = edits_of(item, sae, pipe.tokenizer.eos_token_id)
        if request.anchor:
            edits[OWN] = edits["none"]
        for name, change in tqdm(edits.items(), desc=f"edits of {request.target}", unit="edit"):
            images = [
                draw_edited(pipe, hookpoint, group.twins if name == OWN else group.texts, change, settings)
                for group in (single, mixed)
            ]
            rows.append(np.concatenate([images[0][:8], images[1][:4]]))
            alone, beside = judge(images[0]), judge(images[1])
            style = request.kind == "style"
            anchored = (
                [s == request.anchor for s in alone.style()]
                if style
                else [request.anchor in f for f in alone.present()]
            )
            kept = [(wanted - targets) <= found for wanted, found in zip(mixed.concepts, beside.present(), strict=True)]
            none = torch.cat([alone.none, beside.none]).numpy()
            out[request_id][name] = {
                "gone": proportion(erased(alone.present(), alone.style(), tuple(targets), style=style)),
                "anchored": proportion(anchored),
                "kept": proportion(kept),
                "recognisable": proportion(none < 0.5),
            }
        pictures.append((request.target.replace(" ", "-"), grid(rows)))
    return out


def draw_edited(
    pipe: StableDiffusionPipeline, hookpoint: str, texts: list[str], change: Edit, settings: EvaluateParams
) -> np.ndarray:
    """One image of each prompt with `change` at the hookpoint, whatever a filter would decide."""
    ids = tokenize(pipe.tokenizer, texts).input_ids
    with rewrite_hookpoint(pipe.text_encoder, hookpoint, lambda hidden: change(hidden, ids)):
        states = encode(pipe.text_encoder, pipe.tokenizer, texts, batch=len(texts))
    empty = encode(pipe.text_encoder, pipe.tokenizer, [""])
    seeds = [stream_seed(settings.seed, "edits", i) % 2**31 for i in range(len(texts))]
    return sample(
        pipe, states, empty, seeds, steps=settings.solver_steps, guidance_scale=settings.guidance_scale,
        batch=settings.batch,
    )  # fmt: skip
