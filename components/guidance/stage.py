"""Stage `guidance@<request>`: trains that request's adapter, and no other."""

from __future__ import annotations

import hashlib
import sys

import matplotlib.pyplot as plt
import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from components.collect.tables import read_table
from components.common.errors import UserError
from components.common.files import code_of, digest, key_of
from components.common.paths import CACHE, CONCEPTS, GUIDANCE
from components.common.sections import load_params
from components.common.stage import log, run_stage
from components.diffusion.load import accelerator_device, load_pipeline
from components.guidance.adapters import target_modules, write_adapter
from components.guidance.prepare import NAME, prepare, start_adapter
from components.guidance.train import GuidanceStep, train_guidance
from components.requests.requests import load_requests

TERMS = ("surgical", "uncond", "retain", "prior")


def guidance(request_id: str) -> None:
    """Prepares what the adapter learns from, trains it, and writes `models/guidance/<request>`."""
    params, requests = load_params(), load_requests()
    settings = params.guidance
    if request_id not in requests:
        raise UserError(f"request {request_id!r} is not in requests.yaml", f"use one of: {', '.join(requests)}")
    request = requests[request_id]
    pipe = load_pipeline(params.base.path, accelerator_device())
    target_modules(pipe.unet, settings.parameters)
    table = read_table(CONCEPTS / request_id)
    lesson = prepare(pipe, request_id, request, table, settings)
    fresh = start_adapter(pipe, request_id, lesson.uncond, [table], settings)
    inputs = {"base": digest(params.base.path / "unet"), "concepts": digest(CONCEPTS / request_id)}
    parts = {part: digest(params.base.path / part) for part in ("scheduler", "text_encoder", "tokenizer")}
    code = code_of("common", "diffusion", "guidance")
    axes = hashlib.sha256(fresh.axes.numpy().tobytes()).hexdigest()  # in others a checkpoint would mean something else
    key = key_of(inputs | parts | {"code": code, "params": settings.model_dump_json(), "axes": axes})
    checkpoint = CACHE / "guidance" / f"{request_id}-{key}.safetensors"
    steps = list(
        tqdm(
            train_guidance(
                pipe.unet,
                fresh.parameters,
                *lesson,
                settings,
                held=fresh.held,
                prior=fresh.prior,
                checkpoint=checkpoint,
            ),
            total=settings.steps,
            desc=f"guidance {request_id}",
            unit="step",
            mininterval=5,
        )
    )
    if not Accelerator().is_main_process:
        return
    write_adapter(
        GUIDANCE / request_id,
        pipe.unet,
        NAME,
        params=settings.model_dump(),
        inputs=inputs,
        facts={"final": last_losses(steps)},
    )
    plot_training(steps).savefig(GUIDANCE / request_id / "training.png", dpi=80)
    checkpoint.unlink(missing_ok=True)
    log.info("guidance %s: %s", request_id, last_losses(steps))


def last_losses(steps: list[GuidanceStep]) -> dict[str, float]:
    """Means over the last tenth of training of the terms that it had."""
    tail = steps[-max(1, len(steps) // 10) :]
    means = {name: float(np.mean([getattr(s, name) for s in tail])) for name in TERMS}
    return {name: round(value, 6) for name, value in means.items() if value}


def plot_training(steps: list[GuidanceStep]) -> plt.Figure:
    """The terms over training; the prior, which is an objective up to a constant, on a scale of its own."""
    figure, (axis, other) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name in last_losses(steps):
        (other if name == "prior" else axis).plot(
            [s.step for s in steps], [getattr(s, name) for s in steps], label=name
        )
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    other.set(xlabel="step", title="closed form's objective, all prompts")
    axis.legend()
    return figure


if __name__ == "__main__":
    run_stage(guidance, *sys.argv[1:])
