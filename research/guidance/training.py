"""Trains an adapter as the stage does, into any folder: what reports and benchmarks compare."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from components.guidance.prepare import NAME, join, prepare, start_adapter
from tqdm import tqdm

from components.collect.concepts import carried
from components.collect.tables import where
from components.common.files import code_of, digest, key_of, read_sidecar
from components.common.sections import Params
from components.diffusion.load import accelerator_device, load_pipeline
from components.guidance.adapters import FORMAT, write_adapter
from components.guidance.params import GuidanceParams
from components.guidance.train import train_guidance
from components.requests.requests import Request


class Trained(NamedTuple):
    """One adapter and what it cost."""

    folder: Path
    seconds: float


def train_one(
    params: Params, requests: Mapping[str, Request], table: pd.DataFrame, room: Path, settings: GuidanceParams
) -> Trained:
    """Trains one adapter as the stage does; for several requests one on all of them.

    Its folder in `room` is named by all that it is made from, the code too; one that is there already is taken as it is.
    """
    made_from = {
        "base": digest(params.base.path),
        "code": code_of("collect", "common", "diffusion", "evaluate", "guidance", "openmoji", "requests"),
        "device": accelerator_device().type,  # its seconds are kept
    }
    made_from |= {"params": settings.model_dump_json(), "concepts": params.concepts.model_dump_json()}
    folder = room / key_of(made_from | {i: r.model_dump_json() for i, r in requests.items()})
    if folder.is_dir():
        return Trained(folder, read_sidecar(folder, FORMAT)["facts"]["seconds"])
    begun = time.perf_counter()
    pipe = load_pipeline(params.base.path, accelerator_device())
    tables = tables_of(table, requests)
    lesson = join([prepare(pipe, i, r, tables[i], settings) for i, r in requests.items()])
    settings = of_several(settings, len(requests), most=lesson.uncond.shape[-1])
    fresh = start_adapter(pipe, "+".join(requests), lesson.uncond, list(tables.values()), settings)
    steps = train_guidance(pipe.unet, fresh.parameters, *lesson, settings, held=fresh.held, prior=fresh.prior)
    title = ", ".join(r.target for r in requests.values())
    for _ in tqdm(steps, total=settings.steps, desc=f"guidance {title}", unit="step", mininterval=5):
        pass
    seconds = time.perf_counter() - begun
    inputs = {"base": digest(params.base.path / "unet")}
    write_adapter(folder, pipe.unet, NAME, params=settings.model_dump(), inputs=inputs, facts={"seconds": seconds})
    return Trained(folder, seconds)


def tables_of(table: pd.DataFrame, requests: Mapping[str, Request]) -> dict[str, pd.DataFrame]:
    """Each request's rows, but those with a name that another of `requests` erases: one adapter cannot both keep and erase it."""
    names = carried(table["prompt"].tolist(), requests, "evaluate")  # (P, R)
    return {
        i: where(table, (table["request"] == i) & ~np.delete(names, column, axis=1).any(1))
        for column, i in enumerate(requests)
    }


def of_several(settings: GuidanceParams, count: int, *, most: int) -> GuidanceParams:
    """For one adapter of `count` requests: their steps added up, and their ranks, to `most` at the utmost.

    Its objective has all their surgical terms, and what is held only once: Σ S + λ U + μ R. A batch is drawn from all their
    prompts, so that its surgical term is their mean, as the map term is that of their pooled moments; so λ and μ are divided by as many.
    """
    return settings.model_copy(
        update={
            "steps": settings.steps * count,
            "rank": min(settings.rank * count, max(most, settings.rank)),
            "uncond_weight": settings.uncond_weight / count,
            "retain_weight": settings.retain_weight / count,
        }
    )
