"""How often any of N requests flags a prompt that people wrote and that names none of them: by score, by text, by either.

    P prompts, R requests

Each threshold keeps its share of one budget for all (`features.fpr_all`). Half of the real prompts calibrate with the generated ones;
the other half is measured. The embedded world has some 80 requests; MiniLM (research/filter/minilm.py) has 1,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from components.collect.concepts import build_prompts, make_record
from components.collect.names import plurals
from components.collect.params import ConceptsParams
from components.collect.sources import read_source
from components.collect.tables import read_table, where
from components.common.errors import UserError
from components.common.paths import CORPUS, SAE
from components.common.sections import read_section
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.evaluate.metrics import proportion
from components.features.fit import Shared, fit_own, read_own, read_shared, read_store
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.features.regression import Score
from components.features.scores import strictest_threshold
from components.features.store import Store
from components.filter.artifact import RequestFilter
from components.filter.targets import TargetNames
from components.filter.text import Names
from components.requests.requests import load_requests
from components.sae.model import open_sae
from research.filter.prompts import project_world, world_requests
from research.filter.text import SHOW, false_alarms, unseen
from research.record import environment, publish, table
from research.show import publish as publish_rows

GOALS = {10: 0.003, 100: 0.005, 1000: 0.01}


class Fit(NamedTuple):
    """One request, fitted."""

    item: RequestFilter
    target: TargetNames
    near: np.ndarray
    """Scores of its own calibration prompts that do not name it."""
    found: np.ndarray
    """Scores of its own calibration prompts that name it."""


def _scores(store: Store, item: RequestFilter) -> np.ndarray:
    return store.prompt_scores(item.features, Score(item.weights.numpy(), item.bias.numpy()))


def limits(fits: Mapping[str, Fit], shared: Shared, settings: FeaturesParams, requests: int) -> dict[str, float]:
    """Each request's threshold where there are so many."""
    out = {}
    for name, fit in fits.items():
        stores = [store for store in (shared.benign, shared.real) if store is not None]
        first, *rest = (_scores(store, fit.item)[~store.words.find(fit.target.forms)] for store in stores)
        out[name] = strictest_threshold([np.concatenate([first, fit.near]), *rest], settings.budget(requests))
    return out


def measure(
    fits: Mapping[str, Fit], shared: Shared, prompts: Sequence[str], settings: FeaturesParams, counts: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """For each count of requests: false alarms of any by score, by text and by either, and how many named prompts score alone finds."""
    store, out = read_store(prompts, shared.reader), {}
    scores = {name: _scores(store, fit.item) for name, fit in fits.items()}
    named = {name: store.words.find(fit.target.forms) for name, fit in fits.items()}
    for count in counts:
        chosen = dict(list(fits.items())[:count])
        at = limits(chosen, shared, settings, count)
        by_score = np.any([(scores[name] >= at[name]) & ~named[name] for name in chosen], axis=0)
        hits = false_alarms(Names({name: fit.target for name, fit in chosen.items()}), prompts)
        by_text = np.array([bool(each) for each in hits])
        found = np.concatenate([fit.found >= at[name] for name, fit in chosen.items()])
        out[count] = {
            "score": proportion(by_score).record(),
            "text": proportion(by_text).record(),
            "either": proportion(by_score | by_text).record(),
            "tpr by score": proportion(found).record(),
        }
    return out


def world_fits(count: int, folder: Path) -> tuple[dict[str, Fit], Shared, FeaturesParams]:
    """The first `count` requests of the embedded world, fitted on a sample, and what they share."""
    base, concepts, world = read_section("base", BaseParams), read_section("concepts", ConceptsParams), project_world()
    settings = read_section("features", FeaturesParams).model_copy(update={"fit": "sample"})
    shared = read_shared(read_table(CORPUS), Reader(load_towers(base.path, base.hookpoints), open_sae(SAE, base.path)))
    if shared.real is None:
        shared = shared._replace(real=read_store(calibrating(folder), shared.reader))
    requests = world_requests(count, load_requests(), world, seed=concepts.seed)
    rows, fits = build_prompts(requests, world, concepts), {}
    for i, request in tqdm(requests.items(), desc="fit", unit="request", mininterval=5):
        record = make_record(i, request, world)
        own = read_own(record, where(rows, rows["request"] == i), shared.reader)
        try:
            item, _ = fit_own(record, own, shared, settings)
        except UserError as error:
            tqdm.write(f"{i}: {error}")
            continue
        near = _scores(own.calibrate, item)
        target = TargetNames(record.forms, record.shields, request.languages)
        fits[i] = Fit(item, target, near[own.negative], near[own.names_target])
    return fits, shared, settings


def minilm_fits(count: int, folder: Path) -> tuple[dict[str, Fit], Shared, FeaturesParams]:
    """`count` concepts on MiniLM, and what they share."""
    from research.filter.minilm import FEATURES, concept_names, fit_concept, load_minilm, read_concept, share  # noqa: PLC0415
    from research.filter.minilm_study import FULL, draw_corpus, train  # noqa: PLC0415

    (tokenizer, encoder), world = load_minilm(), project_world()
    names, corpus = concept_names(count, world), draw_corpus(world, FULL)
    reader, _ = train(tokenizer, encoder, corpus, FULL)
    shared = share(reader, names, corpus, world)
    shared, fits = shared._replace(real=read_store(calibrating(folder), reader)), {}
    for name in tqdm(names, desc="fit", unit="concept", mininterval=5):
        own = read_concept(name, reader, world, FULL.per_role)
        try:
            item = fit_concept(name, own, shared, world).item
        except UserError:
            continue  # no latent separates it: its names alone are found
        found = _scores(own.calibrate, item)
        called = (name, *(world.concepts[name].aliases if name in world.concepts else ()))
        fits[name] = Fit(item, TargetNames(tuple(f for n in called for f in plurals(n))), found[:0], found)
    return fits, shared, FEATURES


def calibrating(folder: Path) -> list[str]:
    """The half of the real prompts that calibrates."""
    return [p for name in ("coco-10k.csv", "parti.csv") for p in read_source(str(folder / name))[::2]]


def run(encoder: str, folder: Path, counts: Sequence[int], out: Path, *, show: bool = True) -> None:
    """Fits, measures and publishes research/results/many_ENCODER.json and rows of reports/attacks/show.json."""
    fits, shared, settings = (minilm_fits if encoder == "minilm" else world_fits)(max(counts), folder)
    prompts = unseen(folder)
    found = measure(fits, shared, prompts, settings, counts)
    header = ("requests", "score", "text", "either", "TPR by score alone")
    text = table(header, [[str(n), *(f"{100 * m['value']:.2f} %" for m in each.values())] for n, each in found.items()])
    record = {"environment": environment(("expunge", "torch", "scipy")), "fitted": len(fits), "prompts": len(prompts)}
    publish(f"many_{encoder}", record | {"results": {str(n): each for n, each in found.items()}}, text, out)
    rows = []
    for count, each in found.items():
        goal, any_of = next((g for n, g in sorted(GOALS.items()) if count <= n), 0.01), each["either"]
        what = f"false alarms of any of {count} requests on real prompts, text and score, {encoder}"
        rows.append({
            "what": what, "value": any_of["value"], "n": any_of["n"], "low": any_of["low"], "high": any_of["high"],
            "goal": f"<= {goal}", "met": any_of["value"] <= goal, "command": f"python -m research.filter many --encoder {encoder} --prompts FOLDER",
        })  # fmt: skip
    if show:
        publish_rows(rows, SHOW)
