"""What each choice of the guidance stage is worth: one adapter for each variant of params.yaml, trained and looked at.

    python -m benchmarks.guidance_ablation --request r-d20b6f34

Every variant changes one thing, or what its name says: where layers are trained that do not read the prompt, or the null space
is left out, all that hangs on it (λ stands beside ν = 0 unless a name says otherwise); "All but One alone" is the paper's loss
from a random start, without any term of ours. All of them train on the same prompts (without an anchor, on those of the request
without it) and are judged on the same held-out ones, from the same seeds; the plot shows likeness of unrelated images against the largest drift of the unconditional output in any
timestep bucket, and a grid what each draws where the target was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.report import RESULTS, environment, publish, table
from components.collect.concepts import build_prompts
from components.collect.stage import where
from components.common.config import GuidanceParams, Params, load_params
from components.common.errors import UserError
from components.diffusion import accelerator_device, load_pipeline
from components.evaluate.guidance import MORE, UNHELD, measure_adapters
from components.evaluate.images import Studio
from components.evaluate.stage import pick_retain
from components.evaluate.training import train_one
from components.openmoji.judge import Judge
from components.requests import Request, load_requests

PACKAGES = ("expunge", "torch", "diffusers", "peft")
PAPER: Mapping[str, Any] = {**UNHELD, "start": "random", "map_weight": 0.0, "retain_weight": 0.0}
"""Nothing but the surgical term: `UNHELD` without retain term, map term and closed form."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as in params.yaml": {},
    "all of cross-attention, λ = 0": UNHELD,
    "all of cross-attention, λ = 1": {**UNHELD, "uncond_weight": 1.0},
    "all of cross-attention, λ = 20": {**UNHELD, "uncond_weight": 20.0},
    "all of cross-attention, λ = 100": {k: v for k, v in UNHELD.items() if k != "uncond_weight"},
    "All but One alone, λ = 0": PAPER,
    "All but One alone, λ = 1": {**PAPER, "uncond_weight": 1.0},
    "All but One alone, λ = 20": {**PAPER, "uncond_weight": 20.0},
    "All but One alone, λ = 100": {k: v for k, v in PAPER.items() if k != "uncond_weight"},
    "λ = ν = 0, no null space": {k: v for k, v in UNHELD.items() if k != "parameters"},
    "λ = 100, ν = 1, no null space": {"null_space": False},
    "values alone": {"parameters": "xattn-v"},
    "all of attention": {"parameters": "attn", "null_space": False},
    "random start": {"start": "random"},
    "closed form, one step": {"steps": 0.001},
    "closed form, retained states weigh 1": {"start_retain_weight": 1.0},
    "closed form, retained states weigh 4": {"start_retain_weight": 4.0},
    "no map term": {"map_weight": 0.0},
    "map term weighs 4": {"map_weight": 4.0},
    "map term weighs 80": {"map_weight": 80.0},
    "96 retained trajectories": {"retain_trajectories": 96},
    "256 retained trajectories of 5 solver steps": {"retain_trajectories": 256, "retain_solver_steps": 5},
    "32 trajectories of 20 solver steps": {"trajectories": 32, "solver_steps": 20},
    "rank 2": {"rank": 2},
    "rank 8": {"rank": 8},
    "rank 32": {"rank": 32},
    "no retain term": {"retain_weight": 0.0},
    "retain weight 20": {"retain_weight": 20.0},
    "retain weight 320": {"retain_weight": 320.0},
    "x_t of the target alone": {"anchor_share": 0.0},
    "x_t of the anchor alone": {"anchor_share": 1.0},
    "half the steps": {"steps": 0.5},
    "twice the steps": {"steps": 2.0},
    "half the rate": {"lr": 0.5},
    "a quarter of the rate": {"lr": 0.25},
    "twice the rate": {"lr": 2.0},
    "float32": {"precision": "no"},
    "no anchor, η = 0": {"anchor": ""},
    "no anchor, η = 1": {"anchor": "", "negative_guidance": 1.0},
}
"""What each variant changes; `steps` and `lr` are factors, `anchor` is the request's."""


def everyone() -> dict[str, Request]:
    """The requests of requests.yaml, and the hard ones of the guidance report."""
    return load_requests() | dict(MORE)


def named(request_id: str) -> tuple[str, Request]:
    """The request of that id; one sentence if there is none."""
    if request_id not in (known := everyone()):
        raise SystemExit(str(UserError(f"request {request_id!r} is unknown", f"use one of: {', '.join(known)}")))
    return request_id, known[request_id]


def settings_of(params: GuidanceParams, changes: Mapping[str, Any]) -> GuidanceParams:
    """The stage's parameters with a variant's changes, checked like those of params.yaml."""
    scaled = {
        "steps": max(1, round(params.steps * changes.get("steps", 1.0))),
        "lr": params.lr * changes.get("lr", 1.0),
    }
    own = {key: value for key, value in changes.items() if key != "anchor"}
    return GuidanceParams.model_validate({**params.model_dump(), **own, **scaled})


def request_of(request: Request, changes: Mapping[str, Any]) -> Request:
    """What a variant erases: `request`, without its anchor where that is what changes."""
    return request.model_copy(update={key: value for key, value in changes.items() if key == "anchor"})


def ablate(
    params: Params, request_id: str, request: Request, names: list[str], *, prompts: int, seeds: int, retain: int
) -> tuple[dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """Trains the named variants and measures all on the prompts of `request` as it is: (what was found, images), by name."""
    concepts = params.concepts

    def prompts_for(asked: Request) -> pd.DataFrame:
        return build_prompts(
            {request_id: asked},
            per_name=concepts.per_name,
            retain=concepts.retain,
            mixed=concepts.mixed,
            seed=concepts.seed,
        )

    alone = {request_id: request}
    rows = prompts_for(request)
    held = where(rows, rows["split"] == "evaluate")
    kept = pick_retain(held, alone, retain, params.evaluate.seed)
    judge = Judge.load(params.base.judge)
    with tempfile.TemporaryDirectory() as room:
        trained = {}
        for name in names:
            erased = request_of(request, VARIANTS[name])
            own = rows if erased == request else prompts_for(erased)
            settings = settings_of(params.guidance, VARIANTS[name])
            trained[name] = train_one(params, {request_id: erased}, own, Path(room), settings)
        labels = {f"v{i}": item.folder for i, item in enumerate(trained.values())}  # PEFT's names hold no dots
        pipe = load_pipeline(params.base.path, accelerator_device())
        studio = Studio(pipe, {}, params.base.hookpoint, labels, params.evaluate)
        found: dict[str, dict[str, Any]] = {}
        images: dict[str, np.ndarray] = {}
        for label, (name, item) in zip(labels, trained.items(), strict=True):
            pictures: dict[str, np.ndarray] = {}
            measured = measure_adapters([label], alone, held, kept, studio, judge, params, seeds, prompts, pictures)
            found[name] = {k: v if k == "uncond_drift" else v.record() for k, v in measured.items()}
            found[name] |= {"seconds": item.seconds, "changes": dict(VARIANTS[name])}
            images["base"], images[name] = np.split(pictures[label], 2)  # a row of each
    return found, images


def largest_drift(found: Mapping[str, Any]) -> float:
    """The worst timestep bucket."""
    return max(bucket["value"] for bucket in found["uncond_drift"].values())


def plot(found: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    """Likeness of unrelated images against drift, a point a variant; the legend says what each still erases."""
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for index, (name, item) in enumerate(found.items()):
        drift, ssim = max(largest_drift(item), 1e-5), item["ssim_unrelated"]
        error = np.abs([[ssim["value"] - ssim["low"]], [ssim["high"] - ssim["value"]]])
        label, marker = f"{name} (UA {item['ua']['value']:.2f})", "os^Dv"[index // 10 % 5]
        axis.errorbar(drift, ssim["value"], yerr=error, fmt=marker, markersize=5, linewidth=0.6, label=label)
    axis.axvline(0.01, color="black", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", xlabel="largest drift of the unconditional output", ylabel="SSIM of unrelated images")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def look(images: Mapping[str, np.ndarray]) -> plt.Figure:
    """Rows of images (H, N W, 3), by what drew them; in every column prompt and seed are the same."""
    height, width, _ = next(iter(images.values())).shape
    figure, axis = plt.subplots(figsize=(3.5 + width / 96, len(images) * height / 96), layout="constrained")
    axis.imshow(np.concatenate(list(images.values())), interpolation="nearest")
    axis.set_yticks(np.arange(len(images)) * height + height / 2, list(images), fontsize=7)
    axis.set_xticks([])
    return figure


COLUMNS = ("ua", "anchor_rate", "neighbours", "concepts_kept", "styles_kept", "ssim_unrelated")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--request", help="an id of requests.yaml or of the guidance report; default: the last of requests.yaml"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--retain", type=int, default=24)
    options = parser.parse_args()
    params = load_params()
    request_id, request = named(options.request or list(load_requests())[-1])
    found, images = ablate(
        params, request_id, request, options.variants,
        prompts=options.prompts, seeds=options.seeds, retain=options.retain,
    )  # fmt: skip
    rows = [
        [
            name,
            *(f"{item[column]['value']:.3f}" for column in COLUMNS),
            f"{100 * largest_drift(item):.2f} %",
            f"{item['seconds']:.0f}",
        ]
        for name, item in found.items()
    ]
    record = {"environment": environment(PACKAGES, accelerator_device()), "request": request.model_dump(mode="json"),
              "options": vars(options), "params": params.guidance.model_dump(mode="json"), "variants": found}  # fmt: skip
    name = f"guidance_ablation-{request.target.replace(' ', '-')}"
    publish(name, record, table(("variant", *COLUMNS, "drift", "seconds"), rows))
    plot(found).savefig(RESULTS / f"{name}.png", dpi=80)
    look(images).savefig(RESULTS / f"{name}-images.png", dpi=96)
    tqdm.write(f"{RESULTS / name}.png\n{RESULTS / name}-images.png")


if __name__ == "__main__":
    main()
