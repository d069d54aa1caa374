"""Stage `evaluate`: same-seed images of the base and of every variant, their metrics, a verdict and a page.

It succeeds whatever it finds: refusing a candidate is the promotion's act, and the evidence must be retained.
"""

from __future__ import annotations

import time

from components.collect.record import read_prompts, read_records
from components.collect.tables import read_table
from components.common.files import SIDECAR, canonical, digest, key_of, new_folder
from components.common.paths import CONCEPTS, CORPUS, EVALUATE, FILTER, GUIDANCE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.folder import check_folder, folder_digests
from components.diffusion.geometry import read_geometry
from components.diffusion.load import accelerator_device, load_pipeline
from components.diffusion.params import BaseParams
from components.eraser import Eraser, check_filters
from components.evaluate.detection import measure_filters
from components.evaluate.drift import measure_drift
from components.evaluate.gates import judge_gates, variants_of
from components.evaluate.images import Painter
from components.evaluate.measure import make_plan, measure_scope
from components.evaluate.page import write_page
from components.evaluate.params import EvaluateParams
from components.evaluate.qualify import mark_untold, needed_names, qualify_all, subjects_of
from components.evaluate.summary import METRICS, VERDICT
from components.filter.artifact import read_filters
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
    filters, hookpoint = read_filters(FILTER)
    adapters = {i: GUIDANCE / i for i, record in records.items() if "guidance" in record.request.channels}
    check_adapters(adapters, base.path / "unet")
    check_filters(filters, {i: record.request for i, record in records.items()})
    eraser = Eraser(
        load_pipeline(base.path, accelerator_device()), filters, hookpoint, adapters,
        guidance_scale=base.guidance_scale, solver_steps=base.solver_steps,
    )  # fmt: skip
    judged = {"judge": panel.digest, "base": key_of(folder_digests(base.path)), "filter": digest(FILTER / SIDECAR)}
    judged |= {f"adapter/{i}": digest(folder / SIDECAR) for i, folder in adapters.items()}
    judged |= {f"request/{i}": digest(CONCEPTS / i) for i in records}
    scorer = load_scorer(world, judging, eraser.pipe.tokenizer, eraser.pipe.text_encoder)
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
    channels = {scope: variants_of([records[m].request for m in members]) for scope, members in plan.scopes.items()}
    verdict = judge_gates(metrics, settings.gates, channels, judged)
    targets = {
        i: {"target": r.request.target, "anchor": r.request.anchor, "kind": r.request.kind} for i, r in records.items()
    }
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
        (partial / VERDICT).write_text(canonical(verdict.record()), encoding="utf-8")
        write_page(partial, record, verdict, plan, painter, panel, FILTER / "roc.png")
    log.info("verdict: %s", "pass" if verdict.passed else "fail")


if __name__ == "__main__":
    run_stage(evaluate)
