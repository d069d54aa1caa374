"""Stages `corpus` and `concepts`: prompts as Parquet tables, and their counts."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from components.collect.concepts import build_prompts, check_world
from components.collect.corpus import build_corpus, read_source
from components.common.files import canonical, new_folder
from components.common.paths import CONCEPTS, CORPUS
from components.common.sections import load_params
from components.common.stage import log, run_stage
from components.common.words import mentions
from components.requests.requests import load_requests


def corpus() -> None:
    """Draws, deduplicates and splits the prompts that no request changes."""
    params = load_params().corpus
    extra = [prompt for source in params.sources for prompt in read_source(source)]
    table = build_corpus(
        captions=params.captions,
        english_phrases=params.english,
        benign=params.benign,
        held_out=params.held_out,
        seed=params.seed,
        extra=extra,
    )
    with new_folder(CORPUS) as partial:
        _write(partial, table, counted=["split", "source"])
    log.info("%s: %d prompts", CORPUS, len(table))


def concepts() -> None:
    """Draws each request's prompts; none of the evaluation is among what the SAE learns from or thresholds are set on."""
    params, requests = load_params().concepts, load_requests()
    check_world(requests)
    table = build_prompts(
        requests, per_name=params.per_name, retain=params.retain, mixed=params.mixed, seed=params.seed
    )
    seen = set(read_table(CORPUS).query("split != 'evaluate'")["prompt"])
    fresh = where(table, (table["split"] != "evaluate") | ~table["prompt"].isin(list(seen))).reset_index(drop=True)
    benign = read_table(CORPUS).query("split in ('calibrate', 'evaluate')")
    for request_id, request in requests.items():
        hit = sum(mentions(text, request.names) for text in benign["prompt"])
        log.info(
            "%s: %d of %d benign prompts name the target and are not counted as benign", request_id, hit, len(benign)
        )
    with new_folder(CONCEPTS) as partial:
        for request_id in requests:
            _write(partial / request_id, where(fresh, fresh["request"] == request_id), counted=["split", "role"])
    log.info("%s: %d prompts", CONCEPTS, len(fresh))


def _write(folder: Path, table: pd.DataFrame, *, counted: list[str]) -> None:
    """One table and the counts of its groups, into a folder that is being filled."""
    folder.mkdir(exist_ok=True)
    table.reset_index(drop=True).to_parquet(folder / TABLE, index=False)
    counts = {"/".join(map(str, key)): int(n) for key, n in table.groupby(counted).size().items()}  # type: ignore[arg-type]
    (folder / COUNTS).write_text(canonical(counts), encoding="utf-8")


if __name__ == "__main__":
    run_stage({"corpus": corpus, "concepts": concepts}[sys.argv[1]])
