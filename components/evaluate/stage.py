"""Stage `evaluate`: same-seed images of the base and of every variant, their metrics, a verdict and a page.

It succeeds whatever it finds: refusing a candidate is the promotion's act, and the evidence must be retained.
"""

from __future__ import annotations

import json
import time

from components.collect.record import read_prompts, read_records
from components.collect.tables import read_table
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CONCEPTS, CORPUS, EVALUATE, FILTER, GUIDANCE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.device import accelerator_device
from components.diffusion.folder import base_digest, check_folder
from components.diffusion.geometry import read_geometry
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.eraser import Eraser, check_filters
from components.evaluate.detection import measure_filters
from components.evaluate.drift import measure_drift
from components.evaluate.evidence import judge_evidence, params_digest, requests_digest
from components.evaluate.images import Painter
from components.evaluate.measure import make_plan, measure_scope
from components.evaluate.page import write_page
from components.evaluate.params import EvaluateParams
from components.evaluate.qualify import mark_untold, needed_names, qualify_all, subjects_of
from components.evaluate.summary import METRICS, VERDICT
from components.filter.artifact import open_filters
from components.guidance.adapters import check_adapters
from components.worlds.judges import load_scorer, open_panel
from components.worlds.panel import check_sizes
from components.worlds.params import JudgeParams


def evaluate() -> None:
    """Checks all that it needs, draws, judges, gates and reports."""
    base, settings = read_section("base", BaseParams), read_section("evaluate", EvaluateParams)
    world, judging = read_section("world", str), read_section("judge", JudgeParams)
    records, size = read_records(), settings.sizes[settings.size]
    table = read_prompts(records).query("split == 'evaluate'")
    plan = make_plan(records, table, settings, size)
    panel = open_panel(world, judging, subjects_of(records, plan.retain), needed_names(records))
    check_folder(base.path)
    check_sizes(panel, read_geometry(base.path)[0])
    adapters = {i: GUIDANCE / i for i, record in records.items() if "guidance" in record.request.channels}
    check_adapters(adapters, base.path)
    found = open_filters(FILTER, base.path, base.hookpoints)
    filters = found.filters
    requests = {i: record.request for i, record in records.items()}
    check_filters(filters, requests)
    eraser = Eraser(
        load_pipeline(base.path, accelerator_device()), filters, base.hookpoints, adapters, targets=found.targets,
        guidance_scale=base.guidance_scale, solver_steps=base.solver_steps, guard=False,
    )  # fmt: skip
    judged = {"judge": panel.digest, "base": base_digest(base.path), "filter": digest(FILTER / SIDECAR)}
    judged |= {f"adapter/{i}": digest(folder / SIDECAR) for i, folder in adapters.items()}
    judged |= {f"request/{i}": digest(CONCEPTS / i) for i in records} | {"corpus": digest(CORPUS)}
    judged |= {"requests": requests_digest(requests), "params": params_digest(world, base, judging, settings)}
    scorer = load_scorer(world, judging, eraser.towers.first.tokenizer, eraser.towers.first.encoder)
    corpus = read_table(CORPUS).query("split == 'evaluate'")
    painter = Painter(eraser, batch=settings.batch)
    clock = [time.perf_counter()]

    def lap(what: str) -> None:
        clock.append(time.perf_counter())
        log.info("evaluate: %s in %.0f s", what, clock[-1] - clock[-2])

    painter.paint(plan.wanted())
    lap(f"{painter.drawn} images drawn for {painter.asked} that are judged")
    metrics = {s: measure_scope(plan, members, painter, panel, scorer) for s, members in plan.scopes.items()}
    judges = qualify_all(plan, table, painter, panel, judging, seed=settings.seed)
    mark_untold(metrics, judges)
    lap("images judged")
    for scope, found in measure_filters(eraser, records, plan.scopes, table, corpus).items():
        metrics[scope]["filter"] |= found
    lap("filters measured on prompts")
    adapted = {s: [m for m in members if m in adapters] for s, members in plan.scopes.items()}
    adapted = {scope: members for scope, members in adapted.items() if members}
    drifts = measure_drift(eraser, plan.retain["prompt"].tolist(), list(adapted.values()), seed=settings.seed)
    for scope, drift in zip(adapted, drifts, strict=True):
        metrics[scope]["guidance"]["uncond_drift"] = drift
    lap("drift of the unconditional output measured")
    targets = {i: {"target": r.target, "anchor": r.anchor, "kind": r.kind} for i, r in requests.items()}
    record = {
        "size": settings.size,
        "device": eraser.pipe.unet.device.type,
        "judged": judged,
        "targets": targets,
        "requests": metrics,
        "judges": {i: found.record() for i, found in judges.items()},
    }
    with new_folder(EVALUATE) as partial:
        (partial / METRICS).write_text(canonical(record), encoding="utf-8")
        written = json.loads((partial / METRICS).read_text(encoding="utf-8"))["requests"]
        verdict = judge_evidence(written, requests, settings, judged | {"metrics": digest(partial / METRICS)})
        (partial / VERDICT).write_text(canonical(verdict.record()), encoding="utf-8")
        write_page(partial, record, verdict, plan, painter, panel, FILTER / "roc.png")
    log.info("verdict: %s", "pass" if verdict.passed else "fail")


if __name__ == "__main__":
    run_stage(evaluate)
