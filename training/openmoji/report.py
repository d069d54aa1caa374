"""Measures base model and judge themselves: `python -m training.openmoji.report` writes `reports/base/`.

The judge is measured on renders from seeds that no training used, and on images in which nothing is recognisable; the
base on captions from the evaluation templates, which its training never used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.seeding import generator, stream_seed
from components.common.stage import run_stage
from components.diffusion.device import accelerator_device
from components.diffusion.folder import check_folder
from components.diffusion.images import to_model
from components.diffusion.load import load_pipeline
from components.diffusion.sampling import sample
from components.diffusion.text import towers_of
from components.evaluate.metrics import Metric, calibration_error, mean_interval, proportion, rate_of
from components.evaluate.page import grid, png
from components.worlds.base import PRESENT
from components.worlds.openmoji.clip import ClipScore
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, draw
from components.worlds.openmoji.world import WORLD
from components.worlds.templated import fill
from training.openmoji.judge import augment, ruin
from training.openmoji.params import OpenmojiParams, read_params

OUT = Path("reports/base")
GUIDANCE_SCALE = 3.0
"""Classifier-free guidance of every image."""
BATCH = 32
"""Images drawn at once."""

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
    forms = WORLD.file.templates["evaluate"]
    for name in WORLD.concept_names:
        for style in WORLD.style_names:
            noun = str(rng.choice(WORLD.concept(name).aliases)) if alias else name
            plain = style == WORLD.default_style
            form = str(rng.choice(forms.plain if plain else forms.styled))
            yield fill(form, (noun,), "" if plain else style), Scene((name,), style, seed)


def pair_captions(count: int, seed: int) -> Iterator[tuple[str, Scene]]:
    """Captions of two different concepts, styles in turn."""
    rng = np.random.default_rng(stream_seed(seed, "base report pairs"))
    forms = WORLD.file.templates["evaluate"]
    for index in range(count):
        left, right = (str(c) for c in rng.choice(WORLD.concept_names, 2, replace=False))
        style = WORLD.style_names[index % len(WORLD.styles)]
        plain = style == WORLD.default_style
        form = str(rng.choice(forms.plain_pair if plain else forms.styled_pair))
        yield fill(form, (left, right), "" if plain else style), Scene((left, right), style, seed)


def report_base(params: OpenmojiParams, *, seeds: int, pairs: int, steps: int, out: Path = OUT) -> dict[str, Any]:
    """Measures, writes `metrics.json` and grids into `out`, and returns the metrics."""
    judge, pipe = Judge.load(params.judge), load_pipeline(params.base, accelerator_device())
    on_cpu = pipe if pipe.unet.device.type == "cpu" else load_pipeline(params.base)  # whose seconds are reported
    metrics: dict[str, Metric] = measure_judge(judge, copies=max(1, seeds))
    drawn: dict[str, tuple[list[Scene], np.ndarray]] = {}
    for name, listed in {
        "plain": [pair for s in range(seeds) for pair in captions(s, alias=False)],
        "alias": list(captions(seeds, alias=True))[::2],
        "pairs": list(pair_captions(pairs, seeds)),
    }.items():
        images = render_captions(pipe, [text for text, _ in listed], steps=steps, scope=name)
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
        "seconds_per_image": mean_interval([time_image(on_cpu, seed) for seed in range(5)]),
    }
    clip = ClipScore.load(params.clip, pipe.text_encoder, pipe.tokenizer)
    scenes = drawn["plain"][0][: len(WORLD.concepts) * len(WORLD.styles)]
    texts = [text for text, _ in captions(0, alias=False)]
    renders = np.stack([draw(s._replace(seed=HELD_OUT_SEEDS + i)) for i, s in enumerate(scenes)])
    metrics |= {
        "clip_score": mean_interval(clip(drawn["plain"][1][: len(scenes)], texts)),
        "clip_score_renders": mean_interval(clip(renders, texts)),
    }
    record = {
        **{name: metric.record() for name, metric in metrics.items()},
        "base_sha256": digest(params.base / SIDECAR),
        "judge_sha256": digest(params.judge / SIDECAR),
        "solver_steps": steps,
        "seeds": seeds,
        "guidance_scale": GUIDANCE_SCALE,
        "by_style": _by(hits["plain"], [s.style for s in drawn["plain"][0]]),
        "by_concept": _by(hits["plain"], wanted["plain"]),
        "pairs_by_style": _by(both, [s.style for s in drawn["pairs"][0]]),
    }
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        rows = drawn["plain"][1][: len(WORLD.concepts) * len(WORLD.styles)]
        shaped = rows.reshape(len(WORLD.concepts), len(WORLD.styles), *rows.shape[1:])
        picked = shaped[:: len(WORLD.concepts) // 16][:16]
        (folder / "grid.png").write_bytes(png(grid([picked[:, s] for s in range(len(WORLD.styles))])))
        (folder / "pairs.png").write_bytes(png(grid([drawn["pairs"][1][i : i + 16] for i in (0, 16)])))
    return record


def measure_judge(judge: Judge, *, copies: int) -> dict[str, Metric]:
    """The judge on `copies` held-out renders of every concept and style, and on as many ruined images."""
    listed = [
        Scene((c,), s, HELD_OUT_SEEDS + 1000 * i + 8 * k + j)
        for i in range(copies)
        for k, c in enumerate(WORLD.concept_names)
        for j, s in enumerate(WORLD.style_names)
    ]
    images = np.stack([draw(scene) for scene in tqdm(listed, desc="held-out renders", mininterval=5)])
    said = judge(images)
    spoiled = ruin(to_model(images), generator(HELD_OUT_SEEDS, "ruin"))
    harmed = augment(to_model(images), generator(HELD_OUT_SEEDS, "augment"))
    ruined, worn = (((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for x in (spoiled, harmed))
    answers = judge(np.concatenate([ruined, worn]))
    wanted = ["none"] * len(ruined) + [scene.concepts[0] for scene in listed]
    right = np.array([a == w for a, w in zip(answers.top(), wanted, strict=True)])
    sure = np.where(answers.none >= PRESENT, answers.none, answers.concepts.max(1))
    return {
        "judge_concept": proportion([a == s.concepts[0] for a, s in zip(said.top(), listed, strict=True)]),
        "judge_style": proportion([a == s.style for a, s in zip(said.style(), listed, strict=True)]),
        "judge_none": proportion(right[: len(ruined)]),
        "judge_ece": calibration_error(sure, right),
    }


def render_captions(pipe: StableDiffusionPipeline, texts: list[str], *, steps: int, scope: str) -> np.ndarray:
    """One image of each text, each from a seed of its own."""
    towers = towers_of(pipe)
    states, empty = towers.encode(texts), towers.unconditional()
    size, parts = BATCH, []
    for start in tqdm(range(0, len(texts), size), desc=f"draw {scope}", unit="batch", mininterval=5):
        seeds = [stream_seed(0, "base report", scope, i) % 2**31 for i in range(start, min(start + size, len(texts)))]
        parts.append(
            sample(
                pipe, states.rows(slice(start, start + size)), empty, seeds,
                steps=steps, guidance_scale=GUIDANCE_SCALE, batch=size,
            )
        )  # fmt: skip
    return np.concatenate(parts)


def time_image(pipe: StableDiffusionPipeline, seed: int) -> float:
    """Seconds for one image at 25 steps, alone, on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    towers = towers_of(pipe)
    states, empty = towers.encode(["a cat in neon style"]), towers.unconditional()
    begun = time.perf_counter()
    sample(pipe, states, empty, [seed], steps=25, guidance_scale=GUIDANCE_SCALE)
    torch.set_num_threads(threads)
    return time.perf_counter() - begun


def _by(hits: np.ndarray, keys: list[str]) -> dict[str, float]:
    """Share of hits for each key."""
    return {key: round(float(hits[[k == key for k in keys]].mean()), 4) for key in dict.fromkeys(keys)}


def main() -> None:
    """Measures the base model and the judge that ship, and prints every number beside its target."""
    parser = argparse.ArgumentParser(prog="python -m training.openmoji.report", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="images of every concept in every style, at least 1")
    parser.add_argument("--pairs", type=int, default=400, help="images of two concepts, at least 32")
    parser.add_argument("--steps", type=int, default=10, help="solver steps for each image, at least 1")
    parser.add_argument("--dry-run", action="store_true", help="say what would be measured")
    asked = parser.parse_args()
    for name, least in (("seeds", 1), ("pairs", 32), ("steps", 1)):
        if getattr(asked, name) < least:
            parser.error(f"--{name} is {getattr(asked, name)}; give at least {least}")
    params = read_params()
    check_folder(params.base)
    if asked.dry_run:
        print(f"would measure {params.base} with {asked.seeds} seeds, {asked.pairs} pairs, {asked.steps} steps")
        return
    record = report_base(params, seeds=asked.seeds, pairs=asked.pairs, steps=asked.steps)
    for key, (text, target) in TARGETS.items():
        found = record[key]
        print(f"{found['value']:.4f}  [{found['low']:.4f}, {found['high']:.4f}]  n={found['n']:<5} {text} ({target})")


if __name__ == "__main__":
    run_stage(main)
