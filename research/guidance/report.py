"""The report on the adapters alone: `python -m research.guidance report` writes research/results/guidance.

It trains an adapter for each shipped request, for a character, for a whole category, and for as many further concepts as
act at once. It measures each alone and the first n together: summed, gated, and fused into one (components/guidance/fuse.py).
A gated adapter acts on the prompts that its request's filter flags.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.record import RequestRecord
from components.collect.tables import read_table, where
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CACHE, CORPUS, SAE
from components.common.sections import read_section
from components.diffusion.device import accelerator_device
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.eraser import Eraser
from components.evaluate.images import Painter
from components.evaluate.metrics import Metric, mean_interval
from components.evaluate.page import png
from components.evaluate.params import EvaluateParams
from components.evaluate.select import pick_retain
from components.features.fit import fit_request, read_shared
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.filter.artifact import RequestFilter
from components.guidance.fuse import write_fused
from components.guidance.params import GuidanceParams
from components.requests.requests import load_requests
from components.sae.model import open_sae
from components.worlds.judges import load_judge
from components.worlds.params import JudgeParams
from research.filter.prompts import project_world
from research.guidance.groups import MORE, Group, groups_of, requests_together
from research.guidance.measure import Prompts, measure_adapters, ordinary_phrases
from research.guidance.purification import measure_purification
from research.guidance.training import train_one
from research.record import RESULTS

OUT = RESULTS / "guidance"
SEVERAL = 400
"""Cap on unrelated prompts when several adapters act at once. Single adapters use all."""
PURIFIED = 16
"""Held-out renders of each target that are purified."""


def report_guidance(
    *, seeds: int, prompts: int, retain: int, together: Sequence[int], out: Path = OUT
) -> dict[str, Any]:
    """Trains the adapters, measures them, and writes metrics, plots and grids; returns the metrics."""
    base, params = read_section("base", BaseParams), read_section("guidance", GuidanceParams)
    settings, world = read_section("evaluate", EvaluateParams), project_world()
    single = load_requests() | MORE
    requests = requests_together(max([len(single), *together]), single, world, seed=params.seed)
    records = {i: make_record(i, request, world) for i, request in requests.items()}
    table = build_prompts(requests, world, read_section("concepts", ConceptsParams))
    tables = {i: where(table, table["request"] == i) for i in records}
    judging = read_section("judge", JudgeParams)
    judge = load_judge(
        read_section("world", str), judging, {label for record in records.values() for label in record.avoid}
    )
    filters = fit_filters(base, records, tables)
    workspace = CACHE / "guidance-report"  # adapters stay until all is measured, so that a report that stopped goes on
    trained = {i: train_one(record, tables[i], base, params, workspace) for i, record in records.items()}
    folders = {i: adapter.folder for i, adapter in trained.items()}
    groups = groups_of(list(records), together)
    for group in groups.values():
        (adapter, *rest) = group.adapters
        if not rest and adapter not in records:  # a fused one
            write_fused(workspace / adapter, base.path, {i: folders[i] for i in group.requests}, records, table)
            folders[adapter] = workspace / adapter
    eraser = Eraser(
        load_pipeline(base.path, accelerator_device()), filters, base.hookpoint, folders,
        guidance_scale=base.guidance_scale, solver_steps=base.solver_steps, guard=False,
    )  # fmt: skip
    painter = Painter(eraser, batch=settings.batch)
    measured = where(table, table["split"] == "evaluate")
    listed = where(measured, measured["request"].isin(list(single)))  # the same prompts however many act together
    unrelated = pick_retain(listed, records, retain, settings.seed)
    phrases = ordinary_phrases(world, records, seed=settings.seed)
    alone, pictures = {}, {}
    for i in single:
        title, asked = records[i].request.target, Prompts(measured, unrelated, phrases, prompts, seeds, settings.seed)
        found, pictures[title] = measure_adapters(Group((i,), (i,), "guidance"), records, asked, painter, judge)
        alone[i] = found | {"seconds": mean_interval([trained[i].seconds])}
    joint = {}
    for title, group in groups.items():
        asked = Prompts(measured, unrelated.head(SEVERAL), phrases, max(4, prompts // 2), 1, settings.seed)
        joint[title], pictures[title] = measure_adapters(group, records, asked, painter, judge)
    purified = {}
    for i in single:
        done = measure_purification(eraser, judge, records[i], count=PURIFIED)
        purified[i], pictures[f"purified {records[i].request.target}"] = done
    record = {
        "requests": {i: {"target": r.target, "kind": r.kind, "anchor": r.anchor} for i, r in requests.items()},
        "alone": {i: _plain(found) for i, found in alone.items()},
        "together": {title: _plain(found) for title, found in joint.items()},
        "purification": {i: _plain(found) for i, found in purified.items()},
        "seeds": seeds,
        "device": eraser.pipe.unet.device.type,
        "base": digest(base.path / SIDECAR),
        "judge": judge.digest,
        "params": params.model_dump(mode="json"),
    }
    write_report(record, pictures, out)
    shutil.rmtree(workspace)
    return record


def fit_filters(
    base: BaseParams, records: Mapping[str, RequestRecord], tables: Mapping[str, pd.DataFrame]
) -> dict[str, RequestFilter]:
    """Filters of all requests on the shipped SAE, as the stage `features` fits them, that flag prompts and edit none."""
    shared = read_shared(read_table(CORPUS), Reader(load_towers(base.path, base.hookpoints), open_sae(SAE, base.path)))
    settings = read_section("features", FeaturesParams)
    fitted = {i: fit_request(record, tables[i], shared, settings)[0] for i, record in records.items()}
    return {i: item._replace(classes=torch.zeros_like(item.classes)) for i, item in fitted.items()}


def write_report(record: Mapping[str, Any], pictures: Mapping[str, np.ndarray], out: Path) -> None:
    """Writes metrics.json, the plots and the grids into `out`, which they replace together."""
    with new_folder(out) as folder:
        (folder / "metrics.json").write_text(canonical(record), encoding="utf-8")
        plot_drift(record).savefig(folder / "drift.png", dpi=80)
        plot_together(record["together"]).savefig(folder / "together.png", dpi=80)
        for title, picture in pictures.items():
            (folder / f"{title.replace(' ', '-')}.png").write_bytes(png(picture))
    plt.close("all")


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.record() if isinstance(v, Metric) else v for k, v in found.items()}


def plot_drift(record: Mapping[str, Any]) -> plt.Figure:
    """Relative drift of the unconditional output by timestep, a line for each adapter, and the gate's line at 1 %."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, found in record["alone"].items():
        drift, title = found["uncond_drift"], record["requests"][name]["target"]
        axis.plot(list(drift), [m["value"] for m in drift.values()], marker="o", label=title)
    axis.axhline(0.01, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="timestep", ylabel="relative drift", yscale="log")
    axis.legend(fontsize=7)
    return figure


def plot_together(together: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    """What is erased and what survives as more adapters act at once, a line for each way; the base is dotted."""
    panels = {"ua": "target gone", "neighbours": "neighbours found", "ira": "unrelated concepts found"}
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained", sharey=True)
    by_way: dict[str, dict[int, Mapping[str, Any]]] = {}
    for key, found in together.items():
        count, _, way = key.partition(" ")
        by_way.setdefault(way, {})[int(count)] = found
    for axis, (metric, title) in zip(axes, panels.items(), strict=True):
        for way in sorted(by_way):
            counts = sorted(by_way[way])
            values = [by_way[way][n][metric] for n in counts]
            errors = np.array([[m["value"] - m["low"], m["high"] - m["value"]] for m in values]).T
            axis.errorbar(counts, [m["value"] for m in values], np.abs(errors), marker="o", capsize=2, label=way)
            base = [by_way[way][n][f"{metric}_base"]["value"] for n in counts]
            axis.plot(counts, base, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="requests", ylim=(0, 1.05))
    axes[0].legend(fontsize=7)
    return figure
