"""The report on the adapters alone: `expunge guidance report` writes `reports/guidance/`.

Beside the requests that ship it trains adapters for more kinds of target, a character and a whole category, and for as many
further concepts as are to act together; it takes all that holds the unconditional output away once, to show what it is for
(λ and ν at 0, no null space, all of cross-attention), and trains, if asked, one adapter jointly on as many requests as the fewest that act together,
with their ranks and steps added up.

UA, IRA, CRA     as in metrics.py, of the adapters alone; no prompt is ever edited here. Of several, an image counts for UA if
                 it shows nothing that any of them erases
concepts_change  concepts kept less the base's, prompt by prompt: its interval is that of the pairs, not of either share;
                 `_one` of the prompts that show one concept, of which the base draws nearly all
neighbours       share of images of neighbours, those aside that another acting request erases, in which the neighbour is found
ssim_ordinary    likeness to the base's image of a phrase of ordinary English that names no target
gated            each adapter acts on the prompts alone that its request's filter flags; otherwise all act on all, summed. A filter
                 flags what spells a name of its target, and knows all that are used here, those kept from training too
fused            one adapter made of them in closed form (components/guidance/fuse.py) acts on all
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from components.collect.concepts import build_prompts, known_targets, names_for
from components.collect.tables import read_table, where
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CACHE, CORPUS, GUIDANCE_REPORT, SAE
from components.common.sections import Params
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.text import load_text
from components.evaluate.images import Picture, Studio
from components.evaluate.metrics import Metric, likeness, mean_interval, paired_change, proportion, rate_of
from components.evaluate.page import grid, png
from components.evaluate.stage import anchored_in, erased_of, measure_drift, pick_retain, pick_targets, pictures_of
from components.features.fit import shared_tokens
from components.features.reading import Reader
from components.filter.artifact import RequestFilter
from components.guidance.fuse import write_fused
from components.requests.requests import Request
from components.sae.model import read_sae
from components.worlds.openmoji.judge import Judge
from research.filter.detection import fit_all
from research.filter.prompts import benign_prompts, world_requests
from research.guidance.purification import measure_purification
from research.guidance.training import train_one

MORE = {
    "x-ghost": Request(
        target="ghost", kind="character", aliases=("phantom", "spook", "spectre"), anchor="balloon",
        neighbours=("alien", "snowman"),
    ),
    "x-weapon": Request(target="weapon", kind="category", anchor="umbrella", neighbours=("key", "camera")),
}  # fmt: skip
"""A character and a category, the two kinds that the requests which ship do not show."""
WITHOUT = "unconditional output not held"
UNHELD: Mapping[str, object] = {
    "uncond_weight": 0.0, "start_uncond_weight": 0.0, "null_space": False, "parameters": "xattn",
}  # fmt: skip
"""Nothing holds the unconditional output: neither λ nor ν nor the null space, and layers are trained that do not read the prompt."""
JOINTLY = "trained jointly"
GATED = "gated"
FUSED = "fused"
ORDINARY = 64
"""Phrases of ordinary English, about nothing that the model was taught to draw, of which images are compared too."""
BESIDE_SEVERAL = 400
"""Unrelated prompts, at most, that adapters together are measured on, and the one that shows what holding is for; each alone on all."""
PURIFIED = 16
"""Held-out renders of each target that are purified."""


class Group(NamedTuple):
    """Adapters that act at once."""

    adapters: list[str]
    requests: int
    """How many, the first ones, they are measured on."""
    gated: bool = False


def report_guidance(
    params: Params,
    requests: Mapping[str, Request],
    *,
    seeds: int,
    prompts: int,
    retain: int,
    together: Sequence[int],
    jointly: bool,
    out: Path = GUIDANCE_REPORT,
) -> dict[str, Any]:
    """Trains, measures each adapter alone and several together, and writes metrics, plots and grids."""
    single = dict(requests) | MORE
    everyone = to_act_together(max([len(single), *together]), single, seed=params.guidance.seed)
    concepts = params.concepts
    table = build_prompts(
        everyone, per_name=concepts.per_name, retain=concepts.retain, mixed=concepts.mixed, seed=concepts.seed
    )
    judge = Judge.load(params.base.judge)
    filters = fit_filters(params, everyone)
    room = CACHE / "guidance-report"  # adapters are kept until all is measured, so that a report that stops goes on
    trained = {name: train_one(params, {name: r}, table, room, params.guidance) for name, r in everyone.items()}
    first = next(iter(everyone))
    free = params.guidance.model_copy(update=dict(UNHELD))
    others = {WITHOUT: train_one(params, {first: everyone[first]}, table, room, free)}
    if jointly and (counts := several(together)):
        members = dict(list(everyone.items())[: counts[0]])
        others[JOINTLY] = train_one(params, members, table, room, params.guidance)
    folders = {name: item.folder for name, item in (trained | others).items()}
    for n in several(together) if params.guidance.only_reads_prompt else []:
        members = dict(list(everyone.items())[:n])
        folders[f"{FUSED} {n}"] = room / f"{FUSED}-{n}"
        write_fused(room / f"{FUSED}-{n}", params.base.path, {i: folders[i] for i in members}, members, table)
    pipe = load_pipeline(params.base.path, accelerator_device())
    studio = Studio(pipe, filters, params.base.hookpoint, folders, params.evaluate)
    measured = where(table, table["split"] == "evaluate")
    listed = where(
        measured, measured["request"].isin(list(single))
    )  # nearly the same prompts however many act together
    kept = pick_retain(listed, dict(everyone), retain, params.evaluate.seed)
    pictures: dict[str, np.ndarray] = {}
    alone: dict[str, dict[str, Any]] = {}
    for name in [*single, WITHOUT]:
        about, beside = (first, kept.head(BESIDE_SEVERAL)) if name == WITHOUT else (name, kept)
        found = measure_adapters(
            [name], {about: everyone[about]}, measured, beside, studio, judge, params, seeds, prompts, pictures
        )
        alone[name] = found | {"seconds": mean_interval([(trained | others)[name].seconds])}
    purified: dict[str, dict[str, Metric]] = {}
    for name in single:
        done = measure_purification(studio, judge, name, everyone[name], params, count=PURIFIED)
        purified[name], pictures[f"purified {name}"] = done
    joint = {
        name: measure_adapters(
            group.adapters, dict(list(everyone.items())[: group.requests]), measured, kept.head(BESIDE_SEVERAL), studio,
            judge, params, 1, max(4, prompts // 2), pictures, gated=group.gated,
        )
        for name, group in groups_of(list(everyone), together, jointly=jointly, fused=params.guidance.only_reads_prompt).items()
    }  # fmt: skip
    record = {
        "requests": {name: {"target": r.target, "kind": r.kind, "anchor": r.anchor} for name, r in everyone.items()},
        "alone": {name: _plain(found) for name, found in alone.items()},
        "together": {name: _plain(found) for name, found in joint.items()},
        "purification": {name: _plain(found) for name, found in purified.items()},
        "seeds": seeds,
        "device": pipe.unet.device.type,
        "base": digest(params.base.path / SIDECAR),
        "judge": digest(params.base.judge / SIDECAR),
        "params": params.guidance.model_dump(mode="json"),
    }
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        plot_drift(record["alone"]).savefig(folder / "drift.png", dpi=80)
        plot_together(record["together"]).savefig(folder / "together.png", dpi=80)
        for name, picture in pictures.items():
            (folder / f"{name.replace(' ', '-')}.png").write_bytes(png(picture))
    plt.close("all")
    shutil.rmtree(room)
    return record


def to_act_together(count: int, first: Mapping[str, Request], *, seed: int) -> dict[str, Request]:
    """Those of `first` and more of the world's, whose anchor is a neighbour that none of them all erases; without one, if there is none."""
    everyone = world_requests(count, first, seed=seed)
    erased = {target for request in everyone.values() for target in known_targets(request)}
    for name in everyone.keys() - first.keys():
        free = [n for n in everyone[name].neighbours if n not in erased]
        everyone[name] = everyone[name].model_copy(update={"anchor": free[0] if free else ""})
    return everyone


def several(together: Sequence[int]) -> list[int]:
    """How many adapters act at once, in ascending order, where it is more than one."""
    return sorted({n for n in together if n > 1})


def groups_of(names: Sequence[str], together: Sequence[int], *, jointly: bool, fused: bool) -> dict[str, Group]:
    """What acts at once: the first adapters of `names` summed, gated, and fused, and one trained jointly on the fewest."""
    out: dict[str, Group] = {}
    for n in sorted(set(together)):
        out |= {str(n): Group(list(names[:n]), n), f"{n}, {GATED}": Group(list(names[:n]), n, gated=True)}
    counts = several(together)
    out |= {f"{n}, {FUSED}": Group([f"{FUSED} {n}"], n) for n in counts if fused}
    if jointly and counts:
        out[f"{counts[0]}, {JOINTLY}"] = Group([JOINTLY], counts[0])
    return out


def fit_filters(params: Params, requests: Mapping[str, Request]) -> dict[str, RequestFilter]:
    """The filters of all requests, fitted on the shipped SAE by the stage's rules, on smaller prompt sets."""
    reader = Reader(*load_text(params.base.path), params.base.hookpoint, read_sae(SAE)[0])
    _, detectors = fit_all(requests, params, reader, shared_tokens(read_table(CORPUS), reader))
    return {name: detector.item for name, detector in detectors.items()}


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.record() if isinstance(v, Metric) else v for k, v in found.items()}


def measure_adapters(
    adapters: Sequence[str],
    requests: Mapping[str, Request],
    table: pd.DataFrame,
    kept: pd.DataFrame,
    studio: Studio,
    judge: Judge,
    params: Params,
    seeds: int,
    prompts: int,
    pictures: dict[str, np.ndarray],
    *,
    gated: bool = False,
) -> dict[str, Any]:
    """The named adapters together, on what `requests` erase and on what they must keep, beside the base's own numbers."""
    seed = params.evaluate.seed
    targets = {target for request in requests.values() for target in known_targets(request)}
    touched = table["concepts"].map(lambda shown: bool(targets & set(shown.split("|")))) | table["style"].isin(
        list(targets)
    )
    gone: dict[str, list[bool]] = {"base": [], "adapters": []}
    drawn: list[bool] = []
    near: dict[str, list[bool]] = {"base": [], "adapters": []}
    strips = []
    for name, request in requests.items():
        chosen = pick_targets(table, name, prompts, seed)
        wanted = [
            Picture(p, stream_seed(seed, name, i, s) % 2**31)
            for i, p in enumerate(chosen["prompt"])
            for s in range(seeds)
        ]
        beside = where(table, (table["request"] == name) & (table["role"] == "neighbour") & ~touched)
        beside = beside.sample(min(prompts, len(beside)), random_state=seed)
        around = [
            Picture(p, stream_seed(seed, name, "near", i, s) % 2**31)
            for i, p in enumerate(beside["prompt"])
            for s in range(seeds)
        ]
        style = request.kind == "style"
        for variant, acting in (("base", []), ("adapters", list(adapters))):
            images = studio.draw(wanted, adapters=acting, gated=gated)
            strips.append(images[::seeds][:12])
            said = judge(images)
            gone[variant] += list(erased_of(said, *requests.values()))
            if variant == "adapters" and request.anchor:
                drawn += list(anchored_in(said, request))
            answer = judge(studio.draw(around, adapters=acting, gated=gated))
            if style:
                near[variant] += [
                    a == b for a, b in zip(answer.style(), np.repeat(beside["style"], seeds), strict=True)
                ]
            else:
                shown = [frozenset(c.split("|")) for c in np.repeat(beside["concepts"], seeds)]
                near[variant] += list(rate_of(answer.present(), shown))
    title = "+".join(adapters[:3]) + (f"-and-{len(adapters) - 3}" if len(adapters) > 3 else "")
    pictures[f"{title} {GATED}" if gated else title] = grid(strips[:8])
    unrelated = pictures_of(kept, seed)
    before, after = studio.draw(unrelated), studio.draw(unrelated, adapters=list(adapters), gated=gated)
    out: dict[str, Any] = {
        "ua_base": proportion(gone["base"]),
        "ua": proportion(gone["adapters"]),
        "anchor_rate": proportion(drawn),
        "neighbours_base": proportion(near["base"]),
        "neighbours": proportion(near["adapters"]),
    }
    asked = [frozenset(c.split("|")) for c in kept["concepts"]]
    there: list[np.ndarray] = []
    for suffix, images in (("_base", before), ("", after)):
        said = judge(images)
        there.append(rate_of(said.present(), asked))
        out[f"concepts_kept{suffix}"] = proportion(there[-1])
        out[f"styles_kept{suffix}"] = proportion([a == b for a, b in zip(said.style(), kept["style"], strict=True)])
    out["concepts_change"] = paired_change(*there)
    one = np.array([len(concepts) == 1 for concepts in asked], dtype=bool)
    out["concepts_change_one"] = paired_change(*(found[one] for found in there))
    out["ssim_unrelated"] = mean_interval(likeness(after, before))
    spoken = tuple(name for request in requests.values() for name in names_for(request, "evaluate"))
    phrases = [p for p in benign_prompts(2 * ORDINARY, seed=seed) if not mentions(p, spoken)][:ORDINARY]
    plain = [Picture(p, stream_seed(seed, "ordinary", i) % 2**31) for i, p in enumerate(phrases)]
    images = studio.draw(plain, adapters=list(adapters), gated=gated)
    out["ssim_ordinary"] = mean_interval(likeness(images, studio.draw(plain)))
    return out | {"uncond_drift": {} if gated else measure_drift(studio, list(adapters), kept, params)}  # never touched


def plot_drift(alone: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    """Relative drift of the unconditional output by timestep, one line an adapter, and the line that it should not cross."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, found in alone.items():
        drift = found["uncond_drift"]
        axis.plot(list(drift), [m["value"] for m in drift.values()], marker="o", label=name)
    axis.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="timestep", ylabel="relative drift", yscale="log")
    axis.legend(fontsize=7)
    return figure


def plot_together(together: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    """What is erased and what is kept as more adapters act at once: summed, gated, fused, trained jointly; the base dotted."""
    panels = {"ua": "target gone", "neighbours": "neighbours found", "concepts_kept": "unrelated concepts found"}
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained", sharey=True)
    ways = {key.partition(", ")[2] or "summed" for key in together}
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for way in sorted(ways):
            found = {int(k.split(",")[0]): v for k, v in together.items() if (k.partition(", ")[2] or "summed") == way}
            values = [found[n][metric] for n in sorted(found)]
            errors = np.array([[m["value"] - m["low"], m["high"] - m["value"]] for m in values]).T
            axis.errorbar(sorted(found), [m["value"] for m in values], np.abs(errors), marker="o", capsize=2, label=way)
            base = [found[n][f"{metric}_base"]["value"] for n in sorted(found)]
            axis.plot(sorted(found), base, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="requests", ylim=(0, 1.05))
    axes[0].legend(fontsize=7)
    return figure
