"""Stage `evaluate`: same-seed images of the base and of every way to erase, their metrics, a verdict and a page.

    filter   prompts edited where a filter flags them, no adapter
    guidance the adapters summed, no filter
    both     filters, and the adapters summed
    gated    filters, and each adapter on the prompts alone that its request's filter flags; on all where it has none

It succeeds whatever it finds; refusing a candidate is the promotion's act, and the evidence must be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from components.collect.concepts import carried, known_targets, names_for
from components.collect.corpus import SOURCES
from components.collect.tables import read_concepts, read_table, where
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CORPUS, EVALUATE, FILTER, GUIDANCE
from components.common.sections import Params, load_params
from components.common.seeding import stream_seed
from components.common.stage import log, run_stage
from components.common.words import mentions
from components.diffusion.encode import encode, tokenize
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.sampling import start_noise, trajectories
from components.evaluate.gates import judge_gates
from components.evaluate.images import Picture, Studio
from components.evaluate.metrics import Metric, erased, likeness, mean_interval, proportion, rate_of
from components.evaluate.page import grid, write_report
from components.features.scores import auroc
from components.filter.artifact import read_filters
from components.filter.edit import spelt
from components.filter.encoder import FilteredTextEncoder
from components.guidance.adapters import use_adapters
from components.guidance.losses import relative_drift
from components.requests.requests import Request, load_requests
from components.worlds.openmoji.clip import ClipScore
from components.worlds.openmoji.judge import Judge, Judgement

VARIANTS = ("base", "filter", "guidance", "both", "gated")
JOINT = "joint"
BUCKETS = 5
"""Timestep buckets of the unconditional drift."""


def evaluate() -> None:
    """Draws, judges, gates and reports."""
    params, requests = load_params(), load_requests()
    settings, size = params.evaluate, params.evaluate.sizes[params.evaluate.size]
    judge = Judge.load(params.base.judge)
    filters, hookpoint = read_filters(FILTER)
    adapters = {i: GUIDANCE / i for i, r in requests.items() if "guidance" in r.channels}
    studio = Studio(load_pipeline(params.base.path, accelerator_device()), filters, hookpoint, adapters, settings)
    clip = ClipScore.load(params.base.clip, studio.pipe.text_encoder, studio.pipe.tokenizer)
    table = read_concepts(requests).query("split == 'evaluate'")
    targets = {i: pick_targets(table, i, size.templates, settings.seed) for i in requests}
    retain = pick_retain(table, requests, size.retain, settings.seed)
    metrics: dict[str, Any] = {}
    pages: list[tuple[str, np.ndarray, list[str]]] = []
    scopes = {i: [i] for i in requests} | {JOINT: list(requests)}
    for scope, members in scopes.items():
        log.info("evaluate %s", scope)
        metrics[scope] = measure_scope(scope, members, requests, targets, retain, studio, judge, clip, params, pages)
    for scope, members in scopes.items():
        if any(m in filters for m in members):
            metrics[scope]["filter"] |= measure_filter(members, requests, studio, table)
    channels = {scope: variants_of([requests[m] for m in members]) for scope, members in scopes.items()}
    verdict = judge_gates(metrics, settings.gates, channels)
    record = {
        "size": settings.size,
        "judge": digest(params.base.judge / SIDECAR),
        "device": studio.pipe.unet.device.type,
        "base": digest(params.base.path / SIDECAR),
        "requests": metrics,
    }
    with new_folder(EVALUATE) as partial:
        (partial / "metrics.json").write_text(canonical(record), encoding="utf-8")
        (partial / "verdict.json").write_text(canonical(verdict.record()), encoding="utf-8")
        write_report(partial, record, verdict, requests, pages, FILTER / "roc.png")
    log.info("verdict: %s", "pass" if verdict.passed else "fail")


def variants_of(requests: Sequence[Request]) -> list[str]:
    """Variants, besides base and both, on which gates are held: channels that any of the requests has, gated where all have a filter."""
    channels = {channel for request in requests for channel in request.channels}
    gated = ["gated"] if all("filter" in request.channels for request in requests) else []
    return sorted(channels) + gated


def pick_targets(table: pd.DataFrame, request_id: str, count: int, seed: int) -> pd.DataFrame:
    """`count` single prompts that carry the target, drawn over all its names."""
    rows = where(table, (table["request"] == request_id) & table["role"].isin(("target", "alias")))
    return rows.sample(min(count, len(rows)), random_state=stream_seed(seed, request_id) % 2**32)


def pick_retain(table: pd.DataFrame, requests: dict[str, Request], count: int, seed: int) -> pd.DataFrame:
    """`count` prompts that no request touches: neither its target nor, as a style, its look, nor one of its names, of whatever.

    Their order depends on what they say alone: one more request takes those away that it touches, and others come at the end.
    """
    touched = {t for r in requests.values() for t in known_targets(r)}
    rows = where(table, table["role"] == "retain").drop_duplicates("prompt")
    free = rows["concepts"].map(lambda c: not touched & set(c.split("|"))) & ~rows["style"].isin(list(touched))
    free &= ~carried(rows["prompt"].tolist(), requests, "evaluate").any(1)
    found = where(rows, free)
    order = np.argsort([stream_seed(seed, "unrelated", prompt) for prompt in found["prompt"]])
    return found.iloc[order[:count]]


def pictures_of(kept: pd.DataFrame, seed: int) -> list[Picture]:
    """An image of each prompt, its noise by what the prompt says alone."""
    return [Picture(prompt, stream_seed(seed, "retain", prompt) % 2**31) for prompt in kept["prompt"]]


def measure_scope(
    scope: str,
    members: list[str],
    requests: dict[str, Request],
    targets: dict[str, pd.DataFrame],
    retain: pd.DataFrame,
    studio: Studio,
    judge: Judge,
    clip: ClipScore,
    params: Params,
    pages: list[tuple[str, np.ndarray, list[str]]],
) -> dict[str, Any]:
    """UA, IRA, CRA, anchor rate, CLIP score and SSIM of the variants, and the drift of the adapters."""
    settings, size = params.evaluate, params.evaluate.sizes[params.evaluate.size]
    kept = pictures_of(retain, settings.seed)
    base_kept = studio.draw(kept)
    out: dict[str, Any] = {}
    unrelated: dict[str, np.ndarray] = {}
    strips: dict[str, list[np.ndarray]] = {m: [] for m in members}
    for variant in VARIANTS:
        acting: dict[str, Any] = {
            "filters": members if variant in ("filter", "both", "gated") else [],
            "adapters": members if variant in ("guidance", "both", "gated") else [],
            "gated": variant == "gated",
        }
        gone: list[bool] = []
        anchored: list[bool] = []
        for member in members:
            request = requests[member]
            pictures = [
                Picture(prompt, stream_seed(settings.seed, member, i, s) % 2**31)
                for i, prompt in enumerate(targets[member]["prompt"])
                for s in range(size.seeds)
            ]
            images = studio.draw(pictures, **acting)
            strips[member].append(images)
            said = judge(images)
            gone += list(erased_of(said, *(requests[m] for m in members)))
            if request.anchor:
                anchored += list(anchored_in(said, request))
        kept_images = studio.draw(kept, **acting)
        said = judge(kept_images)
        concepts = rate_of(said.present(), [frozenset(c.split("|")) for c in retain["concepts"]])
        styles = np.array([s == w for s, w in zip(said.style(), retain["style"], strict=True)])
        is_style = all(requests[m].kind == "style" for m in members)
        found = {
            "ua": proportion(gone),
            "ira": proportion(styles if is_style else concepts),
            "cra": proportion(concepts if is_style else styles),
            "anchor_rate": proportion(anchored),
            "clip_unrelated": mean_interval(clip(kept_images, retain["prompt"].tolist())),
            "ssim_unrelated": mean_interval(likeness(kept_images, base_kept)),
        }
        out[variant] = {name: metric.record() for name, metric in found.items()}
        unrelated[variant] = kept_images[:12]
    pages.append((f"{scope}: unrelated prompts", grid(list(unrelated.values())), list(VARIANTS)))
    for member in members:
        name = f"{scope}: {requests[member].target} → {requests[member].anchor or 'nothing'}"
        rows = [images[:: size.seeds][:12] for images in strips[member]]
        pages.append((name, grid(rows), list(VARIANTS)))
    out["guidance"]["uncond_drift"] = measure_drift(studio, members, retain, params)
    return out


def erased_of(said: Judgement, *requests: Request) -> np.ndarray:
    """For each judged image whether the targets of all the requests are gone, (N,) bool."""
    return np.all(
        [erased(said.present(), said.style(), known_targets(r), style=r.kind == "style") for r in requests], axis=0
    )


def anchored_in(said: Judgement, request: Request) -> np.ndarray:
    """For each judged image whether the request's anchor is drawn, (N,) bool."""
    if request.kind == "style":
        return np.array([s == request.anchor for s in said.style()])
    return np.array([request.anchor in found for found in said.present()])


def measure_drift(studio: Studio, members: list[str], retain: pd.DataFrame, params: Params) -> dict[str, Any]:
    """|out_θ(x_t, ∅) - out*(x_t, ∅)| / |out*(x_t, ∅)| by timestep bucket, on trajectories of the frozen model."""
    pipe, settings = studio.pipe, params.evaluate
    adapters = [m for m in members if m in studio.adapters]
    prompts = retain["prompt"].tolist()[:16]
    states = encode(pipe.text_encoder, pipe.tokenizer, prompts)
    noise = start_noise(pipe, [stream_seed(settings.seed, "drift", i) for i in range(len(prompts))])
    total = pipe.scheduler.config.num_train_timesteps
    found: dict[int, list[float]] = {b: [] for b in range(BUCKETS)}
    track = trajectories(
        pipe, states, studio.uncond, noise, steps=settings.solver_steps, guidance_scale=settings.guidance_scale
    )
    for state in list(track)[:-1]:
        empty = studio.uncond.expand(len(prompts), -1, -1).to(state.latents.device)
        with torch.no_grad():
            frozen = pipe.unet(state.latents, state.timestep, empty).sample
            with use_adapters(pipe, adapters):
                edited = pipe.unet(state.latents, state.timestep, empty).sample
        found[min(BUCKETS - 1, state.timestep * BUCKETS // total)] += relative_drift(edited, frozen).tolist()
    width = total // BUCKETS
    return {f"{b * width}-{(b + 1) * width}": mean_interval(v).record() for b, v in found.items() if v}


def measure_filter(
    members: list[str], requests: dict[str, Request], studio: Studio, table: pd.DataFrame
) -> dict[str, Any]:
    """AUROC, TPR and FPR of the members' filters together, and the largest change of a prompt that none of them flags.

    A prompt's score is its best margin over a threshold, so that several requests can be ranked by one number. Prompts
    that name a target are no negatives, whichever request they were drawn for.
    """
    pipe = studio.pipe
    names = [m for m in members if m in studio.filters]
    encoder = FilteredTextEncoder(pipe.text_encoder, {n: studio.filters[n] for n in names}, studio.hookpoint)
    spoken = tuple(name for n in names for name in names_for(requests[n], "evaluate"))
    rows = where(table, table["request"].isin(names)).drop_duplicates("prompt")
    groups = {
        "positive": rows.loc[rows["carries"], "prompt"].tolist(),
        "near": [p for p in rows.loc[~rows["carries"], "prompt"] if not mentions(p, spoken)],
    }
    used = set(table["prompt"])  # a user's own prompt may be one of ours
    for source, listed in read_table(CORPUS).query("split == 'evaluate'").groupby("source", sort=True):
        ids = tokenize(pipe.tokenizer, listed["prompt"].tolist()).input_ids
        named = torch.stack([spelt(ids, studio.filters[n]).any(1) for n in names]).any(0).tolist()
        groups["traffic" if source == SOURCES else "benign"] = [
            p for p, n in zip(listed["prompt"], named, strict=True) if not (n or p in used or mentions(p, spoken))
        ]
    margin: dict[str, np.ndarray] = {}
    moved, unflagged = 0.0, 0
    limits = torch.stack([studio.filters[n].threshold for n in names])
    if not groups.get("traffic"):  # of a few prompts of the user's own all may name a target
        groups.pop("traffic", None)
    for group, prompts in groups.items():
        found = []
        for start in range(0, len(prompts), 256):
            ids = tokenize(pipe.tokenizer, prompts[start : start + 256]).input_ids
            with torch.no_grad():
                edited, stock = encoder(ids)[0], pipe.text_encoder(ids)[0]
            assert encoder.detection is not None  # set by the forward above
            quiet = ~encoder.detection.flagged.any(1)
            moved = max(moved, float((edited - stock)[quiet].abs().max()) if bool(quiet.any()) else 0.0)
            unflagged += int(quiet.sum())
            found.append((encoder.detection.scores - limits).amax(1))
        margin[group] = torch.cat(found).numpy()
    others = np.concatenate([margin["near"], margin["benign"]])
    low, high = auroc_interval(margin["positive"], others)
    total = len(margin["positive"]) + len(others)
    found_metrics = {
        "auroc": Metric(auroc(margin["positive"], others), total, low, high),
        "tpr": proportion(margin["positive"] >= 0),
        "fpr": proportion(margin["benign"] >= 0),
        "fpr_neighbours": proportion(margin["near"] >= 0),
        "passthrough_max_abs": Metric(moved, unflagged, moved, moved),
    }
    if "traffic" in margin:
        found_metrics["fpr_traffic"] = proportion(margin["traffic"] >= 0)
    return {name: metric.record() for name, metric in found_metrics.items()}


def auroc_interval(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """95 % interval of the AUROC by Hanley and McNeil (1982)."""
    a, p, n = auroc(positives, negatives), len(positives), len(negatives)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    half = 1.96 * np.sqrt(max(0.0, a * (1 - a) + (p - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (p * n))
    return max(0.0, a - half), min(1.0, a + half)


if __name__ == "__main__":
    run_stage(evaluate)
