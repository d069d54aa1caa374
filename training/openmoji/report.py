"""Measures base model and judge themselves: `expunge base report` writes `reports/base/`.

The judge is measured on renders from seeds that no training used, and on images in which nothing is recognisable; the
base on captions from the evaluation templates, which its training never used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import BASE_REPORT
from components.common.sections import Params
from components.common.seeding import generator, stream_seed
from components.diffusion.encode import encode
from components.diffusion.images import to_model
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.sampling import sample
from components.evaluate.metrics import Metric, calibration_error, mean_interval, proportion, rate_of
from components.evaluate.page import grid, png
from components.worlds.openmoji import world
from components.worlds.openmoji.captions import fill, templates
from components.worlds.openmoji.clip import ClipScore
from components.worlds.openmoji.judge import PRESENT, Judge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw
from training.openmoji.judge import augment, ruin

TARGETS = {
    "judge_concept": ("judge on held-out renders: concept", 0.99),
    "judge_style": ("judge on held-out renders: style", 0.995),
    "judge_none": ("judge on noise, blank, blurred, collage and mixed images: answers none", 0.95),
    "judge_ece": ("judge's expected calibration error, on augmented renders and ruined images", 0.03),
    "base_concept": ("base draws the named concept", 0.95),
    "base_style": ("base draws the named style", 0.98),
    "base_alias": ("base draws the concept called by an alias", 0.90),
    "base_pair": ("pairs: both concepts found", 0.80),
    "seconds_per_image": ("one 64×64 image, 25 steps, two cores, seconds", 1.5),
}

AT_MOST = ("judge_ece", "seconds_per_image")
"""Targets that a number must not exceed."""


def captions(seed: int, *, alias: bool) -> Iterator[tuple[str, Scene]]:
    """One caption of every concept in every style, from the evaluation templates."""
    rng = np.random.default_rng(stream_seed(seed, "base report", int(alias)))
    forms = templates("evaluate")
    for name in world.CONCEPT_NAMES:
        for style in world.STYLE_NAMES:
            noun = str(rng.choice(world.concept(name).aliases)) if alias else name
            plain = style == world.DEFAULT_STYLE
            form = str(rng.choice(forms.plain if plain else forms.styled))
            yield fill(form, (noun,), "" if plain else style), Scene((name,), style, seed)


def pair_captions(count: int, seed: int) -> Iterator[tuple[str, Scene]]:
    """Captions of two different concepts, styles in turn."""
    rng = np.random.default_rng(stream_seed(seed, "base report pairs"))
    forms = templates("evaluate")
    for index in range(count):
        left, right = (str(c) for c in rng.choice(world.CONCEPT_NAMES, 2, replace=False))
        style = world.STYLE_NAMES[index % len(world.STYLES)]
        plain = style == world.DEFAULT_STYLE
        form = str(rng.choice(forms.plain_pair if plain else forms.styled_pair))
        yield fill(form, (left, right), "" if plain else style), Scene((left, right), style, seed)


def report_base(params: Params, *, seeds: int, pairs: int, steps: int, out: Path = BASE_REPORT) -> dict[str, Any]:
    """Measures, writes `metrics.json` and grids into `out`, and returns the metrics."""
    judge, pipe = Judge.load(params.base.judge), load_pipeline(params.base.path, accelerator_device())
    on_cpu = pipe if pipe.unet.device.type == "cpu" else load_pipeline(params.base.path)  # whose seconds are reported
    metrics: dict[str, Metric] = measure_judge(judge, copies=max(1, seeds))
    drawn: dict[str, tuple[list[Scene], np.ndarray]] = {}
    for name, listed in {
        "plain": [pair for s in range(seeds) for pair in captions(s, alias=False)],
        "alias": list(captions(seeds, alias=True))[::2],
        "pairs": list(pair_captions(pairs, seeds)),
    }.items():
        images = render_captions(pipe, [text for text, _ in listed], params, steps=steps, scope=name)
        drawn[name] = ([scene for _, scene in listed], images)
    said = {name: judge(images) for name, (_, images) in drawn.items()}
    wanted = {name: [s.concepts[0] for s in listed] for name, (listed, _) in drawn.items()}
    hits = {name: np.array([a == b for a, b in zip(said[name].top(), wanted[name], strict=True)]) for name in said}
    styles = [a == s.style for a, s in zip(said["plain"].style(), drawn["plain"][0], strict=True)]
    both = rate_of(said["pairs"].present(), [frozenset(s.concepts) for s in drawn["pairs"][0]])
    metrics |= {
        "base_concept": proportion(hits["plain"]),
        "base_style": proportion(styles),
        "base_alias": proportion(hits["alias"]),
        "base_pair": proportion(both),
        "seconds_per_image": mean_interval([time_image(on_cpu, params, seed) for seed in range(5)]),
    }
    clip = ClipScore.load(params.base.clip, pipe.text_encoder, pipe.tokenizer)
    scenes = drawn["plain"][0][: len(world.CONCEPTS) * len(world.STYLES)]
    texts = [text for text, _ in captions(0, alias=False)]
    renders = np.stack([draw(s._replace(seed=HELD_OUT_SEEDS + i)) for i, s in enumerate(scenes)])
    metrics |= {
        "clip_score": mean_interval(clip(drawn["plain"][1][: len(scenes)], texts)),
        "clip_score_renders": mean_interval(clip(renders, texts)),
    }
    record = {
        **{name: metric.record() for name, metric in metrics.items()},
        "base_sha256": digest(params.base.path / SIDECAR),
        "judge_sha256": digest(params.base.judge / SIDECAR),
        "solver_steps": steps,
        "seeds": seeds,
        "guidance_scale": params.evaluate.guidance_scale,
        "by_style": _by(hits["plain"], [s.style for s in drawn["plain"][0]]),
        "by_concept": _by(hits["plain"], wanted["plain"]),
        "pairs_by_style": _by(both, [s.style for s in drawn["pairs"][0]]),
    }
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        rows = drawn["plain"][1][: len(world.CONCEPTS) * len(world.STYLES)]
        shaped = rows.reshape(len(world.CONCEPTS), len(world.STYLES), *rows.shape[1:])
        picked = shaped[:: len(world.CONCEPTS) // 16][:16]
        (folder / "grid.png").write_bytes(png(grid([picked[:, s] for s in range(len(world.STYLES))])))
        (folder / "pairs.png").write_bytes(png(grid([drawn["pairs"][1][i : i + 16] for i in (0, 16)])))
    return record


def measure_judge(judge: Judge, *, copies: int) -> dict[str, Metric]:
    """The judge on `copies` held-out renders of every concept and style, and on as many ruined images."""
    listed = [
        Scene((c,), s, HELD_OUT_SEEDS + 1000 * i + 8 * k + j)
        for i in range(copies)
        for k, c in enumerate(world.CONCEPT_NAMES)
        for j, s in enumerate(world.STYLE_NAMES)
    ]
    images = np.stack([draw(scene) for scene in tqdm(listed, desc="held-out renders", mininterval=5)])
    said = judge(images)
    spoiled = ruin(to_model(images), generator(HELD_OUT_SEEDS, "ruin"))
    harmed = augment(to_model(images), generator(HELD_OUT_SEEDS, "augment"))
    ruined, worn = (((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for x in (spoiled, harmed))
    answers = judge(np.concatenate([ruined, worn]))
    wanted = ["none"] * len(ruined) + [scene.concepts[0] for scene in listed]
    right = np.array([a == w for a, w in zip(answers.top(), wanted, strict=True)])
    sure = torch.where(answers.none >= PRESENT, answers.none, answers.concepts.amax(1)).numpy()
    return {
        "judge_concept": proportion([a == s.concepts[0] for a, s in zip(said.top(), listed, strict=True)]),
        "judge_style": proportion([a == s.style for a, s in zip(said.style(), listed, strict=True)]),
        "judge_none": proportion(right[: len(ruined)]),
        "judge_ece": calibration_error(sure, right),
    }


def render_captions(
    pipe: StableDiffusionPipeline, texts: list[str], params: Params, *, steps: int, scope: str
) -> np.ndarray:
    """One image of each text, each from a seed of its own."""
    states, empty = encode(pipe.text_encoder, pipe.tokenizer, texts), encode(pipe.text_encoder, pipe.tokenizer, [""])
    size, parts = params.evaluate.batch, []
    for start in tqdm(range(0, len(texts), size), desc=f"draw {scope}", unit="batch", mininterval=5):
        seeds = [stream_seed(0, "base report", scope, i) % 2**31 for i in range(start, min(start + size, len(texts)))]
        parts.append(
            sample(
                pipe, states[start : start + size], empty, seeds,
                steps=steps, guidance_scale=params.evaluate.guidance_scale, batch=size,
            )
        )  # fmt: skip
    return np.concatenate(parts)


def time_image(pipe: StableDiffusionPipeline, params: Params, seed: int) -> float:
    """Seconds for one image at 25 steps, alone, on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    states, empty = encode(pipe.text_encoder, pipe.tokenizer, ["a cat in neon style", ""]).chunk(2)
    begun = time.perf_counter()
    sample(pipe, states, empty, [seed], steps=25, guidance_scale=params.evaluate.guidance_scale)
    torch.set_num_threads(threads)
    return time.perf_counter() - begun


def _by(hits: np.ndarray, keys: list[str]) -> dict[str, float]:
    """Share of hits for each key."""
    return {key: round(float(hits[[k == key for k in keys]].mean()), 4) for key in dict.fromkeys(keys)}
