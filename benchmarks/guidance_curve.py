"""Whether an adapter's training should stop early: its objective on prompts and noise that it has not seen, step by step.

    python -m benchmarks.guidance_curve --request r-5c1e09a7

The held-out objective is that of training, over states that the frozen model draws of the evaluation's prompts from other
seeds. Training is the stage's, to the end of its schedule; nothing is stopped, so that what stopping would have won is seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from tqdm import tqdm

from benchmarks.guidance_ablation import everyone, named
from benchmarks.report import RESULTS, environment, publish, table
from components.collect.concepts import build_prompts
from components.collect.stage import where
from components.common.config import GuidanceParams, Params, load_params
from components.diffusion import accelerator_device, load_pipeline
from components.guidance import Lesson, guidance_loss, prepare, train_guidance
from components.guidance.prepare import start_adapter
from components.guidance.train import in_training_form, precision_of
from components.requests import Request

PACKAGES = ("expunge", "torch", "diffusers", "peft")
TERMS = ("total", "surgical", "uncond", "retain")


@torch.no_grad()
def objective(
    unet: UNet2DConditionModel, lesson: Lesson, settings: GuidanceParams, *, batch: int = 48
) -> dict[str, float]:
    """The terms of the loss as means over all states of `lesson`, the empty prompt at those of both caches."""
    erase, keep = lesson.erase, lesson.keep
    sums, sizes = dict.fromkeys(TERMS[1:], 0.0), dict.fromkeys(TERMS[1:], 0)

    def add(term: str, value: torch.Tensor, count: int) -> None:
        sums[term] += value.item() * count
        sizes[term] += count

    with in_training_form(unet, settings), precision_of(settings, unet.device):
        for cache, spoken in ((erase, lesson.target), (keep, lesson.retain)):
            for rows in torch.arange(len(cache.latents)).split(batch):
                states = torch.cat([spoken[cache.prompt[rows]], lesson.uncond.expand(len(rows), -1, -1)])
                x, time = cache.latents[rows].repeat(2, 1, 1, 1), cache.timesteps[rows].repeat(2)
                x, time, states = (tensor.to(unet.device) for tensor in (x, time, states))
                out, free = unet(x, time, states).sample.float().cpu().chunk(2)
                frozen, cond = cache.uncond[rows].float(), cache.cond[rows].float()
                loss = guidance_loss(
                    out, free, cond - frozen, frozen, out, cond, uncond_weight=1.0, retain_weight=1.0
                )  # of the two that read `out`, the one that is meant here counts
                add(
                    "surgical" if cache is erase else "retain",
                    loss.surgical if cache is erase else loss.retain,
                    len(rows),
                )
                add("uncond", loss.uncond, len(rows))
    found = {term: sums[term] / sizes[term] for term in sums}
    held = 0.0 if settings.null_space else settings.uncond_weight  # there the term is no part of the loss
    total = found["surgical"] + held * found["uncond"] + settings.retain_weight * found["retain"]
    return {"total": total, **found}


def curve(
    pipe: StableDiffusionPipeline, request_id: str, lesson: Lesson, held_out: Lesson, seen: pd.DataFrame,
    settings: GuidanceParams, *, every: int,
) -> Iterator[dict[str, float]]:  # fmt: skip
    """Trains, and yields the held-out objective before the first step, every so many, and after the last."""
    fresh = start_adapter(pipe, request_id, lesson.uncond, [seen], settings)
    yield {"step": 0, **objective(pipe.unet, held_out, settings)}
    for done in train_guidance(pipe.unet, fresh.parameters, *lesson, settings, held=fresh.held, prior=fresh.prior):
        if done.step % every == 0 or done.step == settings.steps:
            yield {"step": done.step, **objective(pipe.unet, held_out, settings)}


def run(params: Params, request_id: str, request: Request, *, every: int, prompts: int) -> list[dict[str, float]]:
    """The curve of one request at the stage's parameters."""
    settings, made = params.guidance, params.concepts
    rows = build_prompts(
        {request_id: request}, per_name=made.per_name, retain=made.retain, mixed=made.mixed, seed=made.seed
    )
    pipe = load_pipeline(params.base.path, accelerator_device())
    seen, unseen = where(rows, rows["split"] != "evaluate"), where(rows, rows["split"] == "evaluate")
    other = settings.model_copy(
        update={"seed": settings.seed + 1, "trajectories": prompts, "retain_trajectories": 4 * prompts}
    )
    held_out = prepare(pipe, request_id, request, unseen.assign(split="held out"), other)
    lesson = prepare(pipe, request_id, request, seen, settings)
    work = curve(pipe, request_id, lesson, held_out, seen, settings, every=every)
    return list(tqdm(work, total=settings.steps // every + 1, desc="held-out objective", unit="point"))


def plot(points: Sequence[dict[str, float]]) -> plt.Figure:
    """Each term by step, and where the weighted sum is least."""
    figure, axes = plt.subplots(1, len(TERMS), figsize=(12, 2.8), layout="constrained")
    best = min(points, key=lambda p: p["total"])["step"]
    for axis, term in zip(axes, TERMS, strict=True):
        axis.plot([p["step"] for p in points], [p[term] for p in points], marker="o", markersize=3)
        axis.axvline(best, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{term}, held out", xlabel="step", yscale="log")
    return figure


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--request", default="", help="an id of requests.yaml or of the guidance report; default: the first"
    )
    parser.add_argument("--every", type=int, default=25, metavar="STEPS")
    parser.add_argument(
        "--prompts", type=int, default=16, help="held-out prompts about the target; four times as many to keep"
    )
    options = parser.parse_args()
    params = load_params()
    request_id, request = named(options.request or next(iter(everyone())))
    points = run(params, request_id, request, every=options.every, prompts=options.prompts)
    best = min(points, key=lambda p: p["total"])
    record = {"environment": environment(PACKAGES, accelerator_device()), "request": request.model_dump(mode="json"), "options": vars(options),
              "params": params.guidance.model_dump(mode="json"), "points": points, "best_step": best["step"],
              "won_by_stopping": float(1 - best["total"] / points[-1]["total"])}  # fmt: skip
    name = f"guidance_curve-{request.target.replace(' ', '-')}"
    cells = [[f"{p['step']:.0f}", *(f"{p[term]:.5f}" for term in TERMS)] for p in points]
    publish(name, record, table(("step", *TERMS), cells))
    plot(points).savefig(RESULTS / f"{name}.png", dpi=80)
    tqdm.write(str(RESULTS / f"{name}.png"))
    plt.close("all")


if __name__ == "__main__":
    main()
