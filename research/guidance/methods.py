"""The methods that race: ours, ESD, concept ablation and UCE, each on the U-Net of a pipeline of its own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from components.collect.record import RequestRecord
from components.common.seeding import generator, stream_seed
from components.diffusion.conditioning import Conditioning
from components.diffusion.encode import find_tokens, special_tokens
from components.diffusion.sampling import start_noise, trajectories
from components.diffusion.text import towers_of
from components.guidance import recipe
from components.guidance.adapters import LAYERS, attach
from components.guidance.params import GuidanceParams
from components.guidance.start import NAME
from components.guidance.train import train_adapter
from components.guidance.trajectories import TrajectoryCache, precision_of
from research.guidance.erasers import ablation_loss, aligned, diffuse, esd_loss, signal_and_noise, uce_weight

ESD_SCALE, ESD_GUIDANCE, ESD_STEPS = 1.0, 3.0, 50
"""η, the guidance scale with which x_t is sampled, and the solver steps of a whole sample (ESD's code: 50 of DDIM)."""
LEARNING_RATE = 1e-3
"""Of ESD and of concept ablation: what is best for ours does not set theirs."""
ALL_OF_CROSS_ATTENTION = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
"""The layers that ESD-x trains; concept ablation trains keys and values."""
DIFFUSION_WEIGHT = 1.0
"""Weight of concept ablation's regulariser."""
FEW_STEPS = 10
"""Solver steps that give a good image with this model: of concept ablation's anchor images, and of the ESD that is favoured."""
PRESERVE_WEIGHT, PRESERVE_MORE, RIDGE = 0.1, 1.0, 0.1
"""UCE's weight of a preserved state against an edited one, a weight that favours unrelated images, and its pull to the old weight."""


class Task(NamedTuple):
    """One request, the prompts that training may see, and their states.

    P prompts about the target, R prompts to retain, N names, L token positions, D hidden
    """

    record: RequestRecord
    table: pd.DataFrame
    """All prompts of the request but the evaluation's."""
    params: GuidanceParams
    guidance_scale: float
    solver_steps: int
    other_concepts: list[str]
    """Concepts of the world that the request does not erase, by name."""
    prompts: list[str]
    """P prompts about the target."""
    names_used: list[str]
    """What each of them calls the target."""
    counterparts: list[str]
    """The same prompts about the anchor."""
    retain_prompts: list[str]
    target: torch.Tensor
    """(P, L, D)"""
    anchor: torch.Tensor
    """(P, L, D)"""
    names: torch.Tensor
    """(N, L, D) of the target's names alone."""
    retain: torch.Tensor
    """(R, L, D)"""
    uncond: torch.Tensor
    """(1, L, D)"""
    watched: TrajectoryCache
    """Frozen trajectories of held-out prompts, on which the drift of the unconditional output is measured."""


Contender = Callable[[StableDiffusionPipeline, Task], Iterator[object]]
"""Edits the pipeline's U-Net in place; yields when it is prepared, after its first step at the latest, then after every step."""


def ours(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """The adapter of the stage `guidance`, to the end of its schedule."""
    return train_adapter(pipe, task.record, task.table, task.params, guidance_scale=task.guidance_scale)


def esd(pipe: StableDiffusionPipeline, task: Task, *, solver_steps: int = ESD_STEPS) -> Iterator[object]:
    """ESD on a LoRA: away from the target's names; the model being trained samples x_t inside every step."""
    params, frozen = task.params, copy.deepcopy(pipe.unet)
    parameters = attach(pipe.unet, NAME, rank=params.rank, seed=params.seed, layers=ALL_OF_CROSS_ATTENTION)
    optimizer, b = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0), recipe.BATCH
    yield None
    for step in itertools.count():
        rng = generator(params.seed, "esd", step)
        states = task.names[torch.randint(len(task.names), (b,), generator=rng)]
        noise = start_noise(pipe, [stream_seed(params.seed, "esd", step, i) for i in range(b)])
        cond, uncond = Conditioning(states), Conditioning(task.uncond)
        track = trajectories(pipe, cond, uncond, noise, steps=solver_steps, guidance_scale=ESD_GUIDANCE)
        stop = int(torch.randint(solver_steps, (1,), generator=rng))
        with torch.no_grad(), precision_of(params, noise.device):
            x = next(itertools.islice(track, stop, None))
            both = torch.cat([task.uncond.expand_as(states), states])
            said = frozen(x.latents.repeat(2, 1, 1, 1), x.timestep, both).sample.float()
        # a block of its own: autocast keeps its casts, those made without gradient too
        with precision_of(params, noise.device):
            out = pipe.unet(x.latents, x.timestep, states).sample.float()
        yield descend(optimizer, parameters, esd_loss(out, *said.chunk(2), erasure_scale=ESD_SCALE), step)


def ablation(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """Concept ablation on a LoRA: x_t are noised images of the anchor, which the frozen model drew beforehand."""
    params = task.params
    noise = start_noise(pipe, [stream_seed(params.seed, "ablation", i) for i in range(len(task.anchor))])
    with precision_of(params, noise.device):
        cond, uncond = Conditioning(task.anchor), Conditioning(task.uncond)
        *_, last = trajectories(pipe, cond, uncond, noise, steps=FEW_STEPS, guidance_scale=task.guidance_scale)
    parameters = attach(pipe.unet, NAME, rank=params.rank, seed=params.seed, layers=LAYERS)
    optimizer, b = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0), recipe.BATCH
    alphas: Any = pipe.scheduler.alphas_cumprod
    yield None
    for step in itertools.count():
        rng = generator(params.seed, "ablation", step)
        rows = torch.randint(len(task.target), (b,), generator=rng)
        time = torch.randint(len(alphas), (b,), generator=rng)
        fresh = torch.randn(last.latents[rows].shape, generator=rng)
        x, velocity = diffuse(last.latents[rows], fresh, *signal_and_noise(alphas, time))
        both = torch.cat([task.target[rows], task.anchor[rows]])
        with precision_of(params, noise.device):
            out_target, out_anchor = pipe.unet(x.repeat(2, 1, 1, 1), time.repeat(2), both).sample.float().chunk(2)
        loss = ablation_loss(out_target, out_anchor, velocity, diffusion_weight=DIFFUSION_WEIGHT)
        yield descend(optimizer, parameters, loss, step)


def uce(pipe: StableDiffusionPipeline, task: Task, *, preserve_weight: float = PRESERVE_WEIGHT) -> Iterator[object]:
    """UCE: keys and values of cross-attention in closed form, from the target's names and from the training prompts.

    It preserves the empty prompt, the prompts to retain, and the names of all other concepts of the world.
    """
    anchor = task.record.anchor
    rows = [(name, name, anchor) for name in task.record.names["select"]]
    rows += zip(task.names_used, task.prompts, task.counterparts, strict=True)
    sides = [state_pair(pipe, *row, anchor) for row in rows]
    edited, wanted = (torch.cat(side) for side in zip(*(s for s in sides if s), strict=True))
    named = towers_of(pipe).encode(["", *task.other_concepts]).states
    preserved = torch.cat([named, task.retain]).flatten(0, 1)
    with torch.no_grad():
        for path, module in pipe.unet.named_modules():
            if isinstance(module, torch.nn.Linear) and path.endswith(LAYERS):
                solved = uce_weight(
                    module.weight, edited, wanted, preserved, preserve_weight=preserve_weight, ridge=RIDGE
                )
                module.weight.copy_(solved)
    yield None


def esd_in_few(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """ESD with as few solver steps as give a good image."""
    return esd(pipe, task, solver_steps=FEW_STEPS)


def uce_that_preserves(pipe: StableDiffusionPipeline, task: Task) -> Iterator[object]:
    """UCE with a heavier weight on what it preserves."""
    return uce(pipe, task, preserve_weight=PRESERVE_MORE)


CONTENDERS: dict[str, Contender] = {
    "expunge": ours, "esd": esd, "esd, few solver steps": esd_in_few, "concept ablation": ablation, "uce": uce,
    "uce, preserving more": uce_that_preserves,
}  # fmt: skip


def descend(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], loss: torch.Tensor, step: int
) -> float:
    """One step at a constant rate, clipped and warmed up as ours is; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / recipe.WARM_UP)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, recipe.MAX_GRADIENT_NORM)
    optimizer.step()
    return loss.item()


def state_pair(
    pipe: StableDiffusionPipeline, name: str, prompt: str, counterpart: str, anchor: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """States of a prompt and of its counterpart from the first mention on; None where the names are not in them."""
    towers = towers_of(pipe)
    ids = towers.tokenize([prompt, counterpart, name, anchor]).input_ids
    eos, _ = special_tokens(towers.first.tokenizer)
    at = []
    for text, said in zip(ids[:2], ids[2:], strict=True):
        pattern = said[1 : said.tolist().index(eos)].tolist()
        found = find_tokens(text[None], pattern)[0].nonzero()
        if not len(found):
            return None
        at.append(int(found[0]))
    states = towers.encode([prompt, counterpart]).states
    return aligned(states[0], states[1], *at)
