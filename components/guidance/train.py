"""Trains one adapter on cached trajectories of the frozen model.

    N cached states, B samples a step, K of prompts to retain, Z latent channels, h = w latent side, L token positions, D hidden

x_t come from sampling the frozen model once, with target, anchor and retain prompts; the frozen outputs that the loss
needs are computed once with them, so that a step runs the trained model alone, in one batch. The empty prompt is held
both where the target is drawn and where anything else is: held at the former alone, it drifts at the latter. Where the
adapter is blind to it, its output is taken for the frozen model's, without a pass, and its term is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm

from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator, stream_seed
from components.diffusion.sampling import start_noise, trajectories
from components.guidance.losses import guidance_loss
from components.guidance.params import GuidanceParams


class Cache(NamedTuple):
    """States of frozen trajectories, and what the frozen model says there."""

    latents: torch.Tensor
    """(N, Z, h, w) x_t."""
    timesteps: torch.Tensor
    """(N,)"""
    prompt: torch.Tensor
    """(N,) row of the prompt pair (target, anchor) or of the retain prompt."""
    uncond: torch.Tensor
    """(N, Z, h, w) out*(x_t, ∅)."""
    cond: torch.Tensor
    """(N, Z, h, w) out*(x_t, anchor) or out*(x_t, retain)."""


class GuidanceStep(NamedTuple):
    """What one optimiser step yields: the loss and its terms, unweighted."""

    step: int
    loss: float
    surgical: float
    uncond: float
    """0 where the adapter is blind to the empty prompt: not computed."""
    retain: float
    prior: float
    """0 without one."""


def precision_of(params: GuidanceParams, device: torch.device) -> torch.autocast:
    """The precision of the U-Net's passes, frozen and trained alike: were they different, a fresh adapter would have a loss."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=params.precision == "bf16")


@contextmanager
def in_training_form(unet: UNet2DConditionModel, params: GuidanceParams) -> Iterator[None]:
    """Within the block the U-Net trades time for memory as `params` says, and on a CPU attends in a form whose gradient is fast."""
    before = dict(unet.attn_processors)
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    if params.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
        unet.set_attn_processor(before)


def cache_trajectories(
    pipe: StableDiffusionPipeline,
    drawn: torch.Tensor,  # (P, L, D): what the trajectories draw
    wanted: torch.Tensor | None,  # (P, L, D): whose frozen output is the aim; None: away from what is drawn
    uncond: torch.Tensor,  # (1, L, D)
    params: GuidanceParams,
    *,
    scope: str,
    batch: int = 48,
) -> Cache:
    """One frozen trajectory for each row of `drawn`, kept at every solver step, in the host's memory.

    What sampling says on the way is kept too, so that only an aim that is not what is drawn costs a pass of its own. Without
    `wanted` the aim of the guidance term is -η g*(x_t, drawn), η `params.negative_guidance`: nothing, or ESD's direction.
    """
    parts: list[Cache] = []
    for start in tqdm(range(0, len(drawn), batch), desc=f"trajectories {scope}", unit="batch", mininterval=5):
        rows = torch.arange(start, min(start + batch, len(drawn)))
        noise = start_noise(pipe, [stream_seed(params.seed, scope, int(r)) for r in rows])
        with torch.no_grad(), in_training_form(pipe.unet, params), precision_of(params, pipe.unet.device):
            states = trajectories(
                pipe, drawn[rows], uncond, noise, steps=params.solver_steps, guidance_scale=params.guidance_scale
            )
            for state, after in pairwise(states):
                assert after.said is not None  # on every step
                free, cond = after.said
                if wanted is None:
                    cond = free - params.negative_guidance * (cond - free)
                elif (elsewhere := (drawn[rows] != wanted[rows]).flatten(1).any(1)).any():
                    x = state.latents[elsewhere]
                    aim = wanted[rows][elsewhere].to(x.device)
                    cond = cond.clone()
                    cond[elsewhere] = pipe.unet(x, state.timestep, aim).sample.to(cond.dtype)
                time = torch.full((len(rows),), state.timestep)
                parts.append(Cache(state.latents.cpu(), time, rows, free.cpu(), cond.cpu()))
    return Cache(*(torch.cat(column) for column in zip(*parts, strict=True)))


def train_guidance(
    unet: UNet2DConditionModel,
    parameters: list[torch.nn.Parameter],
    erase: Cache,
    keep: Cache,
    target: torch.Tensor,  # (P, L, D) prompts about the target, row by row those of `erase.prompt`
    retain: torch.Tensor,  # (R, L, D) prompts to retain, row by row those of `keep.prompt`
    uncond: torch.Tensor,  # (1, L, D)
    params: GuidanceParams,
    *,
    held: bool = False,  # the adapter is blind to the empty prompt
    prior: Callable[[], torch.Tensor] | None = None,  # of the parameters alone; joins the loss at `map_weight`
    checkpoint: Path | None = None,
    every: int = 50,
) -> Iterator[GuidanceStep]:
    """Trains the attached adapter in place; yields after every step, and resumes from `checkpoint` to the same bytes.

    Resumed, it first yields again the steps that were taken before.
    """
    accelerator = Accelerator(mixed_precision="no")  # `precision_of` says where, for frozen passes too
    optimizer = torch.optim.AdamW(parameters, lr=params.lr, weight_decay=0.0)
    holder = torch.nn.ParameterList(parameters)
    start, extra = load_checkpoint(checkpoint, {"adapter": holder}, optimizer) if checkpoint else (0, {})
    taken = [
        GuidanceStep(index, *terms) for index, terms in enumerate(extra.get("terms", torch.empty(0, 5)).tolist(), 1)
    ]
    yield from taken
    model, optimizer = accelerator.prepare(unet, optimizer)
    b, count = params.batch, params.retain_batch
    with in_training_form(unet, params):
        for step in range(start, params.steps):
            rng = generator(params.seed + accelerator.process_index, "guidance", step)
            e = torch.randint(len(erase.latents), (b,), generator=rng)
            k = torch.randint(len(keep.latents), (count,), generator=rng)
            f = torch.randint(len(keep.latents), (b // 2,), generator=rng)  # held with the empty prompt
            frozen_uncond = torch.cat([erase.uncond[e], keep.uncond[f]])
            moves = 0 if held else len(frozen_uncond)
            empty_x = torch.cat([erase.latents[e], keep.latents[f]])[:moves]
            empty_time = torch.cat([erase.timesteps[e], keep.timesteps[f]])[:moves]
            x = torch.cat([erase.latents[e], empty_x, keep.latents[k]])  # (B + B + B/2 + K, Z, h, w)
            time = torch.cat([erase.timesteps[e], empty_time, keep.timesteps[k]])
            states = torch.cat([target[erase.prompt[e]], uncond.expand(moves, -1, -1), retain[keep.prompt[k]]])
            x, time, states = (tensor.to(accelerator.device) for tensor in (x, time, states))
            with precision_of(params, accelerator.device):
                out = model(x, time, states).sample.float().cpu()  # the caches stay where they are
            out_target, out_uncond, out_retain = out.split([b, moves, count])
            loss = guidance_loss(
                out_target,
                out_uncond if moves else frozen_uncond,
                erase.cond[e] - erase.uncond[e],
                frozen_uncond,
                out_retain,
                keep.cond[k],
                uncond_weight=params.uncond_weight,
                retain_weight=params.retain_weight,
            )
            pull = prior() if prior else torch.zeros(())
            total = loss.total + params.map_weight * pull
            for group in optimizer.param_groups:
                group["lr"] = params.lr * min(1.0, (step + 1) / 10, (params.steps - step) / (0.3 * params.steps))
            optimizer.zero_grad()
            accelerator.backward(total)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            taken.append(GuidanceStep(step + 1, *(term.item() for term in (total, *loss[1:], pull))))
            if checkpoint is not None and (step + 1) % every == 0 and accelerator.is_main_process:
                terms = torch.tensor([done[1:] for done in taken], dtype=torch.float64)  # (steps, 5)
                save_checkpoint(checkpoint, {"adapter": holder}, optimizer, step + 1, {"terms": terms})
            yield taken[-1]
