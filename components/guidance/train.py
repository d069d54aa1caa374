"""Trains one adapter on cached trajectories of the frozen model.

    N cached states, B samples a step, K samples to retain, Z latent channels, h = w latent side, L token positions, D hidden

With `hold: penalty` the empty prompt is in each batch both where the target is drawn and where anything else is: held at
the former alone, its output drifts at the latter. An adapter in the null space cannot read the empty prompt: its
output is taken for the frozen model's, without a pass, and its term is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from components.collect.record import RequestRecord
from components.common.checkpoint import load_checkpoint, save_checkpoint
from components.common.seeding import generator
from components.diffusion.conditioning import denoise, joined
from components.diffusion.hooks import device_of
from components.diffusion.text import towers_of
from components.guidance import recipe
from components.guidance.losses import guidance_loss
from components.guidance.params import GuidanceParams
from components.guidance.start import InitialAdapter, start_adapter
from components.guidance.training_set import TrainingSet, prepare
from components.guidance.trajectories import in_training_form, precision_of


class GuidanceStep(NamedTuple):
    """What one optimiser step yields: the loss and its terms, unweighted."""

    step: int
    loss: float
    target_loss: float
    uncond_loss: float
    """0 in the null space, where it is not computed."""
    retain_loss: float
    closed_form_loss: float


def train_adapter(
    pipe: StableDiffusionPipeline,
    record: RequestRecord,
    table: pd.DataFrame,  # the request's prompts, as `read_table` gives them
    params: GuidanceParams,
    *,
    guidance_scale: float,
    checkpoint: Path | None = None,
) -> Iterator[GuidanceStep]:
    """Makes one request's adapter, named `NAME`, in the U-Net of `pipe`; yields after every step, and never with `steps: 0`.

    Nothing happens before the first step is asked for. A run that was killed goes on from `checkpoint`.
    """
    if not params.steps:
        start_adapter(pipe, table, params)
        return
    data = prepare(pipe, record, table, params, guidance_scale=guidance_scale)
    adapter = start_adapter(pipe, table, params)
    with unet_alone(pipe):
        yield from train_guidance(pipe.unet, adapter, data, params, checkpoint=checkpoint)


@contextmanager
def unet_alone(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """Within the block the other models of the pipeline wait in the host's memory: SDXL's take 3 GiB, which training needs."""
    others = [(part, device_of(part)) for part in (pipe.vae, *(tower.encoder for tower in towers_of(pipe).all))]
    for part, _ in others:
        part.to("cpu")
    try:
        yield
    finally:
        for part, device in others:
            part.to(device)


def train_guidance(
    unet: UNet2DConditionModel,
    adapter: InitialAdapter,
    data: TrainingSet,
    params: GuidanceParams,
    *,
    checkpoint: Path | None = None,
    every: int = 50,
) -> Iterator[GuidanceStep]:
    """Trains the attached adapter in place; yields after every step, and resumes from `checkpoint` to the same bytes.

    Resumed, it first yields again the steps that were taken before.
    """
    accelerator = Accelerator(mixed_precision="no")  # `precision_of` says where, for frozen passes too
    parameters = adapter.parameters
    optimizer = torch.optim.AdamW(parameters, lr=recipe.LEARNING_RATE, weight_decay=0.0)
    state = {"adapter": torch.nn.ParameterList(parameters), "axes": adapter.axes}
    start, extra = load_checkpoint(checkpoint, state, optimizer) if checkpoint else (0, {})
    taken = [
        GuidanceStep(index, *terms) for index, terms in enumerate(extra.get("terms", torch.empty(0, 5)).tolist(), 1)
    ]
    yield from taken
    model, optimizer = accelerator.prepare(unet, optimizer)
    b, count = recipe.BATCH, recipe.RETAIN_BATCH
    erase, retain = data.erase, data.retain
    with in_training_form(unet, params):
        for step in range(start, params.steps):
            rng = generator(params.seed + accelerator.process_index, "guidance", step)
            e = torch.randint(len(erase.latents), (b,), generator=rng)
            k = torch.randint(len(retain.latents), (count,), generator=rng)
            f = torch.randint(len(retain.latents), (b // 2,), generator=rng)  # asked with the empty prompt
            frozen_uncond = torch.cat([erase.uncond[e], retain.uncond[f]])
            moves = 0 if adapter.null_space else len(frozen_uncond)
            empty_x = torch.cat([erase.latents[e], retain.latents[f]])[:moves]
            empty_time = torch.cat([erase.timesteps[e], retain.timesteps[f]])[:moves]
            x = torch.cat([erase.latents[e], empty_x, retain.latents[k]])  # (B + B + B/2 + K, Z, h, w)
            time = torch.cat([erase.timesteps[e], empty_time, retain.timesteps[k]])
            about, survive = data.target.rows(erase.prompt[e]), data.retained.rows(retain.prompt[k])
            cond = joined([about, data.uncond.expand(moves), survive]).to(accelerator.device)
            x, time = x.to(accelerator.device), time.to(accelerator.device)
            with precision_of(params, accelerator.device):
                out = denoise(model, x, time, cond).float().cpu()  # the caches stay where they are
            out_target, out_uncond, out_retain = out.split([b, moves, count])
            loss = guidance_loss(
                out_target,
                out_uncond if moves else frozen_uncond,
                erase.cond[e] - erase.uncond[e],
                frozen_uncond,
                out_retain,
                retain.cond[k],
                uncond_weight=recipe.UNCOND_WEIGHT,
                retain_weight=params.retain_weight,
            )
            closed_form = adapter.closed_form_loss()
            total = loss.total + recipe.CLOSED_FORM_WEIGHT * closed_form
            for group in optimizer.param_groups:
                group["lr"] = recipe.LEARNING_RATE * _schedule(step, params.steps)
            optimizer.zero_grad()
            accelerator.backward(total)
            accelerator.clip_grad_norm_(parameters, recipe.MAX_GRADIENT_NORM)
            optimizer.step()
            taken.append(GuidanceStep(step + 1, *(term.item() for term in (total, *loss[1:], closed_form))))
            if checkpoint is not None and (step + 1) % every == 0 and accelerator.is_main_process:
                terms = torch.tensor([done[1:] for done in taken], dtype=torch.float64)  # (steps, 5)
                save_checkpoint(checkpoint, state, optimizer, step + 1, {"terms": terms})
            yield taken[-1]


def _schedule(step: int, steps: int) -> float:
    """The part of the full rate at `step`: it rises over the first steps and falls over the last."""
    return min(1.0, (step + 1) / recipe.WARM_UP, (steps - step) / (recipe.DECAY * steps))
