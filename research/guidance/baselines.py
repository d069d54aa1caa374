"""Erasure at equal training time: ours, ESD, concept ablation and UCE on one request.

Each contender has a U-Net of its own and a clock that runs only while it prepares or trains. They take turns, a slice of
time each, until the clocks reach a budget. Then each draws the same held-out prompts from the same seeds, and the judge
says what is in the images. What a method needs before its first step is on its clock: trajectories, anchor images, UCE's
pairs of states. The states of the prompts that all of them see are read before any clock runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.record import RequestRecord
from components.common.errors import UserError
from components.common.sections import read_section
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.diffusion.text import towers_of
from components.eraser import Eraser
from components.evaluate.images import ImageSpec
from components.evaluate.measure import anchored_in, erased_of
from components.evaluate.metrics import Metric, likeness, mean_interval, proportion, rate_of
from components.evaluate.params import EvaluateParams
from components.evaluate.select import pick_retain, pick_targets, retain_specs, target_specs
from components.guidance import recipe
from components.guidance.losses import relative_drift
from components.guidance.params import GuidanceParams
from components.guidance.training_set import pick_prompts
from components.guidance.trajectories import cache_trajectories
from components.requests.requests import Request
from components.worlds.base import WorldJudge
from components.worlds.judges import load_judge
from components.worlds.load import load_world
from components.worlds.params import JudgeParams
from research.guidance.methods import CONTENDERS, Task
from research.record import RESULTS, environment, publish, quartiles, spread, table

BENCHMARK = "guidance_baselines"
PACKAGES = ("expunge", "torch", "diffusers", "transformers", "peft", "accelerate")
SLICE = 2.5
"""Seconds of one contender's turn."""
UA_REACHED = 0.95
SPOILT = 0.05
"""What IRA may lose against the base where `UA_REACHED` counts: a model that draws nothing has erased everything."""
WATCHED = 16
"""Held-out prompts on whose trajectories the drift is measured."""


class Album(NamedTuple):
    """What every contender draws."""

    targets: tuple[ImageSpec, ...]
    retain: tuple[ImageSpec, ...]
    concepts: list[frozenset[str]]
    """What each retained image shows."""


class Racer:
    """A contender, its own U-Net and its clock."""

    def __init__(self, name: str, pipe: StableDiffusionPipeline, task: Task) -> None:
        self.name, self.pipe = name, copy.copy(pipe)
        self.pipe.unet = copy.deepcopy(pipe.unet)
        self.pipe.unet.set_attn_processor(AttnProcessor())  # its gradient is the faster one on a CPU
        self.work = CONTENDERS[name](self.pipe, task)
        self.seconds, self.prepared, self.steps, self.done = 0.0, 0.0, 0, False
        self.rates: dict[int, float] = {}
        """Steps a second, by turn."""
        self.scores: dict[str, Any] = {}
        self.scored_at = 0

    def advance(self, until: float, turn: int) -> None:
        """Works until its clock shows `until`."""
        first, before = self.steps, self.seconds
        while not self.done and self.seconds < until:
            begun = time.perf_counter()
            try:
                next(self.work)
            except StopIteration:
                self.done = True
            self.seconds += time.perf_counter() - begun
            if not self.prepared:  # also a method that takes no step: its work is done
                self.prepared = before = self.seconds
            elif not self.done:
                self.steps += 1
        if self.steps > first:
            self.rates[turn] = (self.steps - first) / (self.seconds - before)

    @property
    def changed(self) -> bool:
        """Whether the U-Net is another than the one that was scored last."""
        return self.steps > self.scored_at or (self.prepared > 0 and not self.scores)


def collect(
    pipe: StableDiffusionPipeline,
    record: RequestRecord,
    prompts: pd.DataFrame,  # of the request, all splits
    base: BaseParams,
    params: GuidanceParams,
    concepts: Sequence[str],  # all concepts of the world
) -> Task:
    """The training task, on the prompts that the stage `guidance` would draw."""
    seen, held_out = prompts.query("split != 'evaluate'"), prompts.query("split == 'evaluate'")
    about, retain = pick_prompts(
        seen, record.id, seed=params.seed, count=recipe.TRAJECTORIES, retain_count=recipe.RETAIN_TRAJECTORIES
    )
    texts, twins = about["prompt"].tolist(), about["counterpart"].tolist()
    others = held_out.query("role == 'retain'")["prompt"].tolist()[:WATCHED]
    target, anchor, names, retained, uncond, watched = (
        towers_of(pipe).encode(listed) for listed in (texts, twins, record.names["select"], retain, [""], others)
    )
    cache = cache_trajectories(
        pipe, watched, watched, uncond, params.model_copy(update={"precision": "no"}),
        scope="drift", solver_steps=recipe.SOLVER_STEPS, guidance_scale=base.guidance_scale,
    )  # fmt: skip
    return Task(
        record, seen, params, base.guidance_scale, base.solver_steps, [c for c in concepts if c not in record.labels],
        texts, about["name_used"].tolist(), twins, retain,
        *(cond.states for cond in (target, anchor, names, retained, uncond)), cache,
    )  # fmt: skip


def compose(prompts: pd.DataFrame, record: RequestRecord, images: int, seed: int) -> Album:
    """`images` held-out prompts about the target and as many unrelated ones, each with its own seed."""
    held_out = prompts.query("split == 'evaluate'")
    targets = target_specs(pick_targets(held_out, record.id, images, seed), record.id, 1, seed)
    retain = pick_retain(held_out, {record.id: record}, images, seed)
    return Album(targets, retain_specs(retain, seed), [frozenset(shown) for shown in retain["concepts"]])


def draw(pipe: StableDiffusionPipeline, task: Task, specs: Sequence[ImageSpec]) -> np.ndarray:
    """The images (N, H, W, 3) uint8 by the pipeline as it is."""
    eraser = Eraser(pipe, {}, "", {}, guidance_scale=task.guidance_scale, solver_steps=task.solver_steps, guard=False)
    erased = eraser.read([spec.prompt for spec in specs], variant="base")
    return np.concatenate([images for _, images in eraser.paint(erased, [spec.seed for spec in specs])])


@torch.no_grad()
def drift(pipe: StableDiffusionPipeline, task: Task) -> float:
    """|out(x_t, ∅) - out*(x_t, ∅)| / |out*(x_t, ∅)|, the mean over prompts at the solver step where it is largest."""
    at = task.watched
    out = pipe.unet(at.latents, at.timesteps, task.uncond.expand(len(at.latents), -1, -1)).sample
    moved = relative_drift(out, at.uncond)
    return max(moved[at.timesteps == t].mean().item() for t in at.timesteps.unique())


def score(
    pipe: StableDiffusionPipeline, task: Task, album: Album, judge: WorldJudge, before: np.ndarray
) -> dict[str, dict[str, float]]:
    """UA, anchor rate, IRA, SSIM of unrelated images to `before`, and drift of the pipeline as it is."""
    after = draw(pipe, task, album.retain)
    said, others = judge(draw(pipe, task, album.targets)), judge(after)
    found: dict[str, Metric] = {
        "ua": proportion(erased_of(said, task.record)),
        "anchor_rate": proportion(anchored_in(said, task.record)),
        "ira": proportion(rate_of(others.present(), album.concepts)),
        "ssim_unrelated": mean_interval(likeness(after, before)),
    }
    return {name: metric.record() for name, metric in found.items()} | {"drift": {"value": drift(pipe, task)}}


def race(
    pipe: StableDiffusionPipeline, task: Task, album: Album, judge: WorldJudge, names: Sequence[str], budgets: Sequence[float],
    *, share: float = SLICE,
) -> tuple[list[dict[str, Any]], list[Racer]]:  # fmt: skip
    """(one record for the base and for each contender at each budget, the contenders)."""
    before = draw(pipe, task, album.retain)
    base = score(pipe, task, album, judge, before)
    records: list[dict[str, Any]] = [{"contender": "base", "budget": 0.0, "seconds": 0.0, "steps": 0, **base}]
    racers = [Racer(name, pipe, task) for name in names]
    ticks = sorted({*np.arange(share, max(budgets), share).tolist(), *budgets})
    for turn, tick in enumerate(tqdm(ticks, desc="turns", unit="turn")):
        shift = turn % len(racers)
        for racer in racers[shift:] + racers[:shift]:
            racer.advance(tick, turn)
        if tick not in budgets:
            continue
        for racer in racers:
            if racer.changed:
                racer.scores, racer.scored_at = score(racer.pipe, task, album, judge, before), racer.steps
            ready = 0 < racer.prepared <= tick + share  # what takes longer to prepare has by then changed nothing
            now = {"seconds": racer.seconds if ready else tick, "steps": racer.steps}
            records.append({"contender": racer.name, "budget": tick, **now, **(racer.scores if ready else base)})
    return records, racers


def summarise(records: Sequence[dict[str, Any]], racers: Sequence[Racer]) -> list[dict[str, Any]]:
    """For each contender its preparation, its rate, that rate against ours, and the first time at which `UA_REACHED` counts."""
    rates, least = racers[0].rates, records[0]["ira"]["value"] - SPOILT
    return [
        {
            "contender": racer.name,
            "prepared_seconds": racer.prepared,
            "steps_per_second": quartiles(list(racer.rates.values())) if racer.rates else None,
            "ratio": quartiles([racer.rates[t] / rates[t] for t in shared]) if shared else None,
            "seconds_to_ua": next(
                (
                    r["seconds"]
                    for r in records
                    if r["contender"] == racer.name and r["ua"]["value"] >= UA_REACHED and r["ira"]["value"] >= least
                ),
                None,
            ),
        }
        for racer in racers
        for shared in [sorted(racer.rates.keys() & rates.keys())]
    ]


def percent(metric: Mapping[str, float]) -> str:
    """`value [low, high]` in percent."""
    return "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * metric[key] for key in ("value", "low", "high")))


def shown(records: Sequence[dict[str, Any]], speed: Sequence[dict[str, Any]]) -> str:
    """Both tables: what each contender erases and spoils at each budget, and how fast it is."""
    quality = [
        [
            r["contender"],
            f"{r['budget']:g}",
            f"{r['seconds']:.1f}",
            str(r["steps"]),
            *(percent(r[key]) for key in ("ua", "anchor_rate", "ira")),
            f"{r['ssim_unrelated']['value']:.3f}",
            f"{100 * r['drift']['value']:.2f}",
        ]
        for r in records
    ]
    rates = [
        [
            r["contender"],
            f"{r['prepared_seconds']:.1f}",
            spread(r["steps_per_second"]),
            spread(r["ratio"]),
            "not reached" if r["seconds_to_ua"] is None else f"{r['seconds_to_ua']:.1f}",
        ]
        for r in speed
    ]
    heads = (
        ("contender", "budget s", "clock s", "steps", "UA", "anchor", "IRA", "SSIM", "drift"),
        ("contender", "preparation s", "steps/s", "steps/s to the first", f"s to UA ≥ {UA_REACHED:.0%}"),
    )
    return "\n\n".join(table(head, rows) for head, rows in zip(heads, (quality, rates), strict=True))


def compare(
    request_id: str,
    request: Request,
    names: Sequence[str],
    budgets: Sequence[float],
    *,
    images: int,
    out: Path = RESULTS,
) -> None:
    """Loads base, world and judge of params.yaml, races, and publishes."""
    base, name = read_section("base", BaseParams), read_section("world", str)
    world, concepts = load_world(name), read_section("concepts", ConceptsParams)
    record = make_record(request_id, request, world)
    judge = load_judge(name, read_section("judge", JudgeParams), record.avoid)
    prompts, pipe = build_prompts({request_id: request}, world, concepts), load_pipeline(base.path)
    task = collect(pipe, record, prompts, base, read_section("guidance", GuidanceParams), judge.concept_names)
    run(
        pipe,
        task,
        compose(prompts, record, images, read_section("evaluate", EvaluateParams).seed),
        judge,
        names,
        budgets,
        out=out,
    )


def run(
    pipe: StableDiffusionPipeline, task: Task, album: Album, judge: WorldJudge, names: Sequence[str], budgets: Sequence[float],
    *, share: float = SLICE, out: Path = RESULTS,
) -> dict[str, Any]:  # fmt: skip
    """Races, publishes, and returns the record."""
    records, racers = race(pipe, task, album, judge, names, budgets, share=share)
    speed, request = summarise(records, racers), task.record.request
    record = {
        "environment": environment(PACKAGES),
        "request": {"target": request.target, "anchor": request.anchor},
        "guidance": task.params.model_dump(),
        "budgets": list(budgets),
        "images": {"target": len(album.targets), "retain": len(album.retain)},
        "quality": records,
        "speed": speed,
    }
    publish(f"{BENCHMARK}-{request.target.replace(' ', '-')}", record, shown(records, speed), out)
    return record


def choose(requests: Mapping[str, Request], target: str) -> tuple[str, Request]:
    """(id, request) of a target; `UserError` without an anchor, which two of the methods need."""
    fitting = {request.target: (i, request) for i, request in requests.items() if request.anchor}
    if target not in fitting:
        raise UserError(f"no request erases {target!r} with an anchor", f"use one of: {', '.join(fitting)}")
    return fitting[target]
