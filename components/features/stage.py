"""Stage `features`: for each request its features, score, threshold and replacement, with the ROC that supports them."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from components.collect.record import RequestRecord, read_records
from components.collect.tables import read_table
from components.common.files import SIDECAR, canonical, digest, new_folder
from components.common.paths import CONCEPTS, CORPUS, FILTER, SAE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.device import accelerator_device
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.features.fit import fit_request, read_shared
from components.features.params import FeaturesParams
from components.features.plots import plot_roc
from components.features.reading import Reader
from components.filter.artifact import RequestFilter, write_filters
from components.sae.model import open_sae


def features() -> None:
    """Selects on one split, calibrates on another, and writes the filter of every request."""
    base, settings = read_section("base", BaseParams), read_section("features", FeaturesParams)
    records = {i: record for i, record in read_records().items() if "filter" in record.request.channels}
    towers = load_towers(base.path, base.hookpoints, accelerator_device())
    shared = read_shared(read_table(CORPUS), Reader(towers, open_sae(SAE, base.path)))
    filters: dict[str, RequestFilter] = {}
    facts: dict[str, dict[str, Any]] = {}
    for i, record in tqdm(records.items(), desc="features", unit="request"):
        filters[i], facts[i] = fit_request(record, read_table(CONCEPTS / i), shared, settings, requests=len(records))
        log.info("%s %r: %s", i, record.request.target, facts[i]["calibration"])
    curves = {i: each.pop("roc") for i, each in facts.items()}
    inputs = part_digests(base.path, TEXT_PARTS)
    inputs |= {"sae": digest(SAE / SIDECAR), "concepts": digest(CONCEPTS), "corpus": digest(CORPUS)}
    with new_folder(FILTER) as partial:
        write_filters(
            partial,
            filters,
            towers=towers,
            params=settings.model_dump(),
            inputs=inputs,
            facts={"detail": facts, "text": {i: target_facts(record) for i, record in records.items()}},
        )
        (partial / "roc.json").write_text(canonical(curves), encoding="utf-8")
        plot_roc(partial / "roc.png", {records[i].request.target: curve for i, curve in curves.items()})


def target_facts(record: RequestRecord) -> dict[str, list[str]]:
    """What the artifact says of a request's names in text, as `read_targets` reads it."""
    return {
        "forms": list(record.forms),
        "shields": list(record.shields),
        "languages": list(record.request.languages),
    }


if __name__ == "__main__":
    run_stage(features)
