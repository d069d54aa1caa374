"""Erasure at equal training time: our guidance, ESD, concept ablation and UCE on one request of requests.yaml.

    python -m benchmarks.guidance_baselines

Each contender has a U-Net of its own and a clock that runs only while it prepares or trains. They take turns, a slice of
time each, until the clocks reach a budget; then what each has so far draws the same held-out prompts from the same seeds,
and the judge says what is in the images. What a method needs before its first step (trajectories, anchor images, UCE's
pairs of states) is on its clock; the states of the prompts that all of them see are read before any clock runs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from benchmarks.guidance_ablation import everyone
from components.guidance.prepare import NAME, pick_prompts, prepare, start_adapter
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

from components.collect.concepts import build_prompts, known_targets, names_for
from components.common.errors import UserError
from components.common.sections import Params, load_params
from components.common.seeding import generator, stream_seed
from components.diffusion.encode import encode, find_tokens, tokenize
from components.diffusion.load import load_pipeline
from components.diffusion.sampling import start_noise, trajectories
from components.evaluate.images import Picture, Studio
from components.evaluate.metrics import Metric, likeness, mean_interval, proportion, rate_of
from components.evaluate.stage import anchored_in, erased_of, pick_retain, pick_targets, pictures_of
from components.guidance.adapters import attach
from components.guidance.losses import relative_drift
from components.guidance.train import Cache, cache_trajectories, precision_of, train_guidance
from components.requests.requests import Request
from components.worlds.openmoji import world
from components.worlds.openmoji.judge import Judge
from research.guidance.erasers import ablation_loss, aligned, diffuse, esd_loss, signal_and_noise, uce_weight
from research.record import RESULTS, environment, publish, quartiles, spread, table

BENCHMARK = "guidance_baselines"
PACKAGES = ("expunge", "torch", "diffusers", "transformers", "peft", "accelerate")
BUDGETS = (15.0, 30.0, 60.0, 150.0)
"""Seconds of preparation and training after which every contender is measured."""
SLICE = 2.5
"""Seconds of one contender's turn."""
ESD_SCALE, ESD_GUIDANCE, ESD_STEPS = 1.0, 3.0, 50
"""η, the guidance under which x_t is sampled, and the solver steps of a whole sample (its code: 50 of DDIM)."""
LR = 1e-3
"""Learning rate of ESD and of concept ablation, so that what ours learns best at does not set theirs."""
ESD_PARAMETERS, ABLATION_PARAMETERS = "xattn", "xattn-kv"
"""What gets their LoRA: what the papers train, all of cross-attention (ESD-x) and its keys and values."""
DIFFUSION_WEIGHT = 1.0
"""Weight of concept ablation's regulariser."""
FEW_STEPS = 10
"""Solver steps that give a good image with this model: of concept ablation's anchors, and of ESD where it is favoured."""
SPOILT = 0.05
"""What IRA may lose against the base where a UA counts as reached: a model that draws nothing has erased everything."""
WATCHED = 16
"""Held-out prompts on whose trajectories the drift is measured."""
PRESERVE_WEIGHT, PRESERVE_MORE, RIDGE = 0.1, 1.0, 0.1
"""UCE's weight of each preserved state against one of an edited state, one that favours what is unrelated, and its pull to
the old weight."""


class Task(NamedTuple):
    """One request, the prompts that training may see, and their states."""

    request_id: str
    request: Request
    params: Params
    table: pd.DataFrame
    """All that training may read, as the stage reads it."""
    spoken: list[str]
    """Prompts about the target."""
    names: list[str]
    """How each of them calls it."""
    counterparts: list[str]
    """The same prompts about the anchor."""
    kept: list[str]
    """Prompts to retain."""
    target: torch.Tensor
    """(P, L, D)"""
    wanted: torch.Tensor
    """(P, L, D)"""
    bare: torch.Tensor
    """(N, L, D) the names of the target and nothing else."""
    retain: torch.Tensor
    """(R, L, D)"""
    uncond: torch.Tensor
    """(1, L, D)"""
    watched: Cache
    """Frozen trajectories of held-out prompts, on which the unconditional output's drift is measured."""


class Album(NamedTuple):
    """What every contender is asked to draw."""

    targets: list[Picture]
    retain: list[Picture]
    concepts: list[frozenset[str]]
    """What the retained pictures show."""


Contender = Callable[[StableDiffusionPipeline, Task], Iterator[object]]
"""Yields once when it is prepared, then after every step, and edits the pipeline's U-Net in place."""


def ours(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """`components.guidance` as the stage runs it, to the end of its schedule."""
    settings = task.params.guidance
    lesson = prepare(pipe, task.request_id, task.request, task.table, settings)
    fresh = start_adapter(pipe, task.request_id, lesson.uncond, [task.table], settings)
    yield None
    yield from train_guidance(pipe.unet, fresh.parameters, *lesson, settings, held=fresh.held, prior=fresh.prior)


def esd(pipe: StableDiffusionPipeline, task: Task, *, solver_steps: int = ESD_STEPS) -> Iterator[object]:
    """ESD on the LoRA: away from the target's bare names, x_t sampled inside every step with the model being trained."""
    settings, frozen = task.params.guidance, copy.deepcopy(pipe.unet)
    parameters = adapter(pipe, task, ESD_PARAMETERS)
    optimizer, b = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0), settings.batch
    yield None
    for step in itertools.count():
        rng = generator(settings.seed, "esd", step)
        states = task.bare[torch.randint(len(task.bare), (b,), generator=rng)]
        noise = start_noise(pipe, [stream_seed(settings.seed, "esd", step, i) for i in range(b)])
        track = trajectories(pipe, states, task.uncond, noise, steps=solver_steps, guidance_scale=ESD_GUIDANCE)
        stop = int(torch.randint(solver_steps, (1,), generator=rng))
        with torch.no_grad(), precision_of(settings, noise.device):
            x = next(itertools.islice(track, stop, None))
            both = torch.cat([task.uncond.expand_as(states), states])
            said = frozen(x.latents.repeat(2, 1, 1, 1), x.timestep, both).sample.float()
        # a block of its own: autocast keeps its casts, those that were made without gradient too
        with precision_of(settings, noise.device):
            out = pipe.unet(x.latents, x.timestep, states).sample.float()
        loss = esd_loss(out, *said.chunk(2), erasure_scale=ESD_SCALE)
        yield descend(optimizer, parameters, loss, step)


def ablation(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """Concept ablation on the LoRA: x_t are noised images that the frozen model drew of the anchor beforehand."""
    settings = task.params.guidance
    noise = start_noise(pipe, [stream_seed(settings.seed, "ablation", i) for i in range(len(task.wanted))])
    with precision_of(settings, noise.device):
        *_, last = trajectories(
            pipe, task.wanted, task.uncond, noise, steps=FEW_STEPS, guidance_scale=settings.guidance_scale
        )
    parameters = adapter(pipe, task, ABLATION_PARAMETERS)
    optimizer, b = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0), settings.batch
    alphas: Any = pipe.scheduler.alphas_cumprod
    yield None
    for step in itertools.count():
        rng = generator(settings.seed, "ablation", step)
        rows = torch.randint(len(task.target), (b,), generator=rng)
        time_ = torch.randint(len(alphas), (b,), generator=rng)
        fresh = torch.randn(last.latents[rows].shape, generator=rng)
        x, velocity = diffuse(last.latents[rows], fresh, *signal_and_noise(alphas, time_))
        both = torch.cat([task.target[rows], task.wanted[rows]])
        with precision_of(settings, noise.device):
            out_target, out_anchor = pipe.unet(x.repeat(2, 1, 1, 1), time_.repeat(2), both).sample.float().chunk(2)
        loss = ablation_loss(out_target, out_anchor, velocity, diffusion_weight=DIFFUSION_WEIGHT)
        yield descend(optimizer, parameters, loss, step)


def uce(pipe: StableDiffusionPipeline, task: Task, *, preserve_weight: float = PRESERVE_WEIGHT) -> Iterator[object]:
    """UCE: keys and values of cross-attention in closed form, from bare names and from the prompts that we train on.

    Preserved are the empty prompt, the retained prompts, and every concept of the world that is not a target, by name.
    """
    request, anchor = task.request, task.request.anchor
    spoken = [(name, name, anchor) for name in names_for(request, "select")]
    spoken += zip(task.names, task.spoken, task.counterparts, strict=True)
    sides = [state_pair(pipe, *row, anchor) for row in spoken]
    edited, wanted = (torch.cat(side) for side in zip(*(s for s in sides if s), strict=True))
    others = [c for c in world.CONCEPT_NAMES if c not in known_targets(request)]
    preserved = torch.cat([encode(pipe.text_encoder, pipe.tokenizer, ["", *others]), task.retain]).flatten(0, 1)
    with torch.no_grad():
        for path, module in pipe.unet.named_modules():
            if isinstance(module, torch.nn.Linear) and path.endswith(("attn2.to_k", "attn2.to_v")):
                solved = uce_weight(
                    module.weight, edited, wanted, preserved, preserve_weight=preserve_weight, ridge=RIDGE
                )
                module.weight.copy_(solved)
    yield None


def esd_in_few(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """ESD with as few solver steps as give a good image."""
    return esd(pipe, task, solver_steps=FEW_STEPS)


def uce_that_preserves(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """UCE with a heavier weight of what it preserves."""
    return uce(pipe, task, preserve_weight=PRESERVE_MORE)


CONTENDERS: dict[str, Contender] = {
    "expunge": ours, "esd": esd, "esd, few solver steps": esd_in_few, "concept ablation": ablation, "uce": uce,
    "uce, preserving more": uce_that_preserves,
}  # fmt: skip


def adapter(pipe: StableDiffusionPipeline, task: Task, parameters: str) -> list[torch.nn.Parameter]:
    """A fresh LoRA of the shipped rank."""
    settings = task.params.guidance
    return attach(pipe.unet, NAME, parameters=parameters, rank=settings.rank, seed=settings.seed)


def descend(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], loss: torch.Tensor, step: int
) -> float:
    """One step as ours takes it, clipped and warmed up over ten, at a constant rate after them."""
    for group in optimizer.param_groups:
        group["lr"] = LR * min(1.0, (step + 1) / 10)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return loss.item()


def state_pair(
    pipe: StableDiffusionPipeline, name: str, prompt: str, counterpart: str, anchor: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """States of a prompt and of its counterpart from the first mention on; None where the names are not in them."""
    ids = tokenize(pipe.tokenizer, [prompt, counterpart, name, anchor]).input_ids
    eos = int(pipe.tokenizer.eos_token_id)
    at = []
    for text, said in zip(ids[:2], ids[2:], strict=True):
        pattern = said[1 : said.tolist().index(eos)].tolist()
        found = find_tokens(text[None], pattern)[0].nonzero()
        if not len(found):
            return None
        at.append(int(found[0]))
    states = encode(pipe.text_encoder, pipe.tokenizer, [prompt, counterpart])
    return aligned(states[0], states[1], *at)


class Racer:
    """A contender, its own U-Net and its clock."""

    def __init__(self, name: str, pipe: StableDiffusionPipeline, task: Task) -> None:
        self.name, self.pipe = name, copy.copy(pipe)
        self.pipe.unet = copy.deepcopy(pipe.unet)
        self.pipe.unet.set_attn_processor(AttnProcessor())  # on a CPU its gradient is the faster one
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
                break
            self.seconds += time.perf_counter() - begun
            if self.prepared:
                self.steps += 1
            else:
                self.prepared = before = self.seconds
        if self.steps > first:
            self.rates[turn] = (self.steps - first) / (self.seconds - before)

    @property
    def changed(self) -> bool:
        """Whether the U-Net is another than the one that was scored last."""
        return self.steps > self.scored_at or (self.prepared > 0 and not self.scores)


def collect(
    pipe: StableDiffusionPipeline, params: Params, request_id: str, request: Request
) -> tuple[Task, pd.DataFrame]:
    """The training task, as the stage composes it, and the table of held-out prompts."""
    made = params.concepts
    whole = build_prompts(
        {request_id: request}, per_name=made.per_name, retain=made.retain, mixed=made.mixed, seed=made.seed
    )
    seen = whole.query("split != 'evaluate'")
    pairs, kept = pick_prompts(seen, request_id, params.guidance)
    spoken, twins, bare = pairs["prompt"].tolist(), pairs["counterpart"].tolist(), names_for(request, "select")
    states = [encode(pipe.text_encoder, pipe.tokenizer, prompts) for prompts in (spoken, twins, bare, kept, [""])]
    held_out = whole.query("split == 'evaluate'")
    others = encode(pipe.text_encoder, pipe.tokenizer, held_out.query("role == 'retain'")["prompt"].tolist()[:WATCHED])
    exact = params.guidance.model_copy(update={"precision": "no"})
    watched = cache_trajectories(pipe, others, others, states[-1], exact, scope="drift")
    names = pairs["spoken"].tolist()
    return Task(request_id, request, params, seen, spoken, names, twins, kept, *states, watched), held_out


def compose(held_out: pd.DataFrame, request_id: str, request: Request, images: int, seed: int) -> Album:
    """`images` held-out prompts about the target and as many unrelated ones, a seed for each."""
    spoken = pick_targets(held_out, request_id, images, seed)["prompt"].tolist()
    kept = pick_retain(held_out, {request_id: request}, images, seed)
    about = [Picture(p, stream_seed(seed, BENCHMARK, "target", i) % 2**31) for i, p in enumerate(spoken)]
    return Album(about, pictures_of(kept, seed), [frozenset(c.split("|")) for c in kept["concepts"]])


def draw(pipe: StableDiffusionPipeline, task: Task, pictures: Sequence[Picture]) -> np.ndarray:
    """The pictures, (B, H, W, 3) uint8, by the pipeline as it is."""
    return Studio(pipe, {}, task.params.base.hookpoint, {}, task.params.evaluate).draw(pictures)


@torch.no_grad()
def drift(pipe: StableDiffusionPipeline, task: Task) -> float:
    """|out(x_t, ∅) - out*(x_t, ∅)| / |out*(x_t, ∅)|, the mean over prompts at the solver step where it is largest."""
    at = task.watched
    out = pipe.unet(at.latents, at.timesteps, task.uncond.expand(len(at.latents), -1, -1)).sample
    moved = relative_drift(out, at.uncond)
    return max(moved[at.timesteps == t].mean().item() for t in at.timesteps.unique())


def score(
    pipe: StableDiffusionPipeline, task: Task, album: Album, judge: Judge, before: np.ndarray
) -> dict[str, dict[str, float]]:
    """UA, anchor rate, IRA, SSIM of unrelated images to `before`, and drift of the pipeline as it is."""
    after = draw(pipe, task, album.retain)
    said, others = judge(draw(pipe, task, album.targets)), judge(after)
    found: dict[str, Metric] = {
        "ua": proportion(erased_of(said, task.request)),
        "anchor_rate": proportion(anchored_in(said, task.request)),
        "ira": proportion(rate_of(others.present(), album.concepts)),
        "ssim_unrelated": mean_interval(likeness(after, before)),
    }
    return {name: metric.record() for name, metric in found.items()} | {"drift": {"value": drift(pipe, task)}}


def race(
    pipe: StableDiffusionPipeline, task: Task, album: Album, judge: Judge, names: Sequence[str], budgets: Sequence[float],
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


def summarise(records: Sequence[dict[str, Any]], racers: Sequence[Racer], *, ua: float) -> list[dict[str, Any]]:
    """For each contender its preparation, its rate, that rate against ours, and the first measured time with UA >= `ua`.

    A time counts if no more than `SPOILT` of the base's IRA was lost by then.
    """
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
                    if r["contender"] == racer.name and r["ua"]["value"] >= ua and r["ira"]["value"] >= least
                ),
                None,
            ),
        }
        for racer in racers
        for shared in [sorted(racer.rates.keys() & rates.keys())]
    ]


def percent(metric: dict[str, float]) -> str:
    """`value [low, high]` in percent."""
    return "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * metric[key] for key in ("value", "low", "high")))


def run(
    pipe: StableDiffusionPipeline, params: Params, judge: Judge, request_id: str, request: Request, names: Sequence[str],
    budgets: Sequence[float], *, images: int, share: float = SLICE, ua: float = 0.95, out: Path = RESULTS,
) -> dict[str, Any]:  # fmt: skip
    """Races, publishes, and returns the record."""
    task, held_out = collect(pipe, params, request_id, request)
    album = compose(held_out, request_id, request, images, params.evaluate.seed)
    records, racers = race(pipe, task, album, judge, names, budgets, share=share)
    found = summarise(records, racers, ua=ua)
    quality = [
        [r["contender"], f"{r['budget']:g}", f"{r['seconds']:.1f}", str(r["steps"])]
        + [percent(r[key]) for key in ("ua", "anchor_rate", "ira")]
        + [f"{r['ssim_unrelated']['value']:.3f}", f"{100 * r['drift']['value']:.2f}"]
        for r in records
    ]
    speed = [
        [
            r["contender"],
            f"{r['prepared_seconds']:.1f}",
            spread(r["steps_per_second"]),
            spread(r["ratio"]),
            "not reached" if r["seconds_to_ua"] is None else f"{r['seconds_to_ua']:.1f}",
        ]
        for r in found
    ]
    text = (
        f"{request.target} → {request.anchor}; {len(album.targets)} images of the target, {len(album.retain)} unrelated; "
        "percent with 95 % intervals\n\n"
        + table(("contender", "budget s", "clock s", "steps", "UA", "anchor", "IRA", "SSIM", "drift"), quality)
        + "\n\n"
        + table(
            ("contender", "preparation s", "steps/s", f"steps/s to {names[0]}", f"s to UA ≥ {ua:.0%}, IRA kept"), speed
        )
    )
    record = {
        "environment": environment(PACKAGES),
        "request": {"target": request.target, "anchor": request.anchor},
        "guidance": params.guidance.model_dump(),
        "budgets": list(budgets),
        "images": {"target": len(album.targets), "retain": len(album.retain)},
        "quality": records,
        "speed": found,
    }
    publish(f"{BENCHMARK}-{request.target.replace(' ', '-')}", record, text, out)
    return record


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--request", default="", help="an id of requests.yaml or of the guidance report; default: the first"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), metavar="SECONDS")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--images", type=int, default=40, help="of the target, and as many unrelated")
    parser.add_argument("--ua", type=float, default=0.95, help="UA that `seconds to UA` waits for")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="one second and two images, to see that everything runs; no results"
    )
    given = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"  # the caches are on the CPU
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    params = load_params()
    request_id, request = choose(everyone(), given.request)
    budgets, images = ([1.0], 2) if given.quick else (sorted(given.budgets), given.images)
    pipe, judge = load_pipeline(params.base.path), Judge.load(params.base.judge)
    with tempfile.TemporaryDirectory() as nowhere:
        out = Path(nowhere) if given.quick else RESULTS
        run(pipe, params, judge, request_id, request, given.contenders, budgets, images=images, ua=given.ua, out=out)


def choose(requests: Mapping[str, Request], request_id: str) -> tuple[str, Request]:
    """The named request, by default the first; it needs an anchor, as two of the methods do."""
    fitting = {i: r for i, r in requests.items() if r.anchor}
    wanted = request_id or next(iter(fitting), "")
    if wanted not in fitting:
        raise UserError(f"request {wanted!r} is not known, or has no anchor", f"use one of: {', '.join(fitting)}")
    return wanted, fitting[wanted]


if __name__ == "__main__":
    main()
