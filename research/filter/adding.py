"""Seconds to add one request to a hundred, once its prompts are read.

    python -m research.filter.adding [--requests 24] [--threads 2]

Requests are made from the world's concepts. The corpus, the base and the SAE are those of the working tree: run
`dvc repro concepts` first. Each request is fitted twice; the second time counts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.tables import read_table, where
from components.common.files import new_folder
from components.common.paths import CORPUS, SAE
from components.common.sections import read_section
from components.diffusion.params import BaseParams
from components.diffusion.text import load_text
from components.features.fit import fit_own, read_own, read_shared
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.filter.artifact import RequestFilter, write_filters
from components.requests.requests import Request
from components.sae.model import read_sae
from components.worlds.load import load_world
from components.worlds.templated import TemplatedWorld

EXISTING = 100


def made_requests(world: TemplatedWorld, count: int) -> Iterator[tuple[str, Request]]:
    """(id, request) for `count` concepts spread over the world; the anchor is the next concept that is no neighbour."""
    names = world.concept_names
    for place in np.linspace(0, len(names) - 1, count).astype(int):
        name = names[place]
        concept = world.concept(name)
        others = (n for n in (*names[place + 1 :], *names) if n != name and n not in concept.neighbours)
        yield (
            f"r-{place:08x}",
            Request(
                target=name,
                kind=concept.kind,
                aliases=concept.aliases,
                anchor=next(others),
                neighbours=concept.neighbours,
            ),
        )


def quartiles(values: list[float]) -> dict[str, float | int]:
    """Median and quartiles of some seconds, and how many there are."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(4).tolist()
    return {"n": len(values), "q1": low, "median": middle, "q3": high}


def measure(count: int) -> dict[str, dict[str, float | int]]:
    """Seconds of each step for `count` requests."""
    base, settings = read_section("base", BaseParams), read_section("features", FeaturesParams)
    world = load_world(read_section("world", str))
    assert isinstance(world, TemplatedWorld)
    shared = read_shared(read_table(CORPUS), Reader(*load_text(base.path), base.hookpoint, read_sae(SAE)[0]))
    requests = dict(made_requests(world, count))
    table = build_prompts(requests, world, read_section("concepts", ConceptsParams))
    spent: dict[str, list[float]] = {"read its prompts": [], "fit": [], "write 101 filters": []}
    fitted: list[RequestFilter] = []
    for request_id, request in requests.items():
        record, own = make_record(request_id, request, world), where(table, table["request"] == request_id)
        clock = [time.perf_counter()]
        read = read_own(record, own, shared.reader)
        clock.append(time.perf_counter())
        fit_own(record, read, shared, settings)
        middle = time.perf_counter()
        fitted.append(fit_own(record, read, shared, settings)[0])
        spent["read its prompts"].append(clock[1] - clock[0])
        spent["fit"].append(time.perf_counter() - middle)
    everything = {f"r-{i}": fitted[i % len(fitted)] for i in range(EXISTING + 1)}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(5):
            begun = time.perf_counter()
            with new_folder(Path(folder) / "filter") as partial:
                write_filters(partial, everything, hookpoint=base.hookpoint, params={}, inputs={}, facts={})
            spent["write 101 filters"].append(time.perf_counter() - begun)
    return {step: quartiles(values) for step, values in spent.items()}


def main() -> None:
    """Reads the command line and prints the seconds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=24, help="requests to add, one after the other")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(measure(given.requests), indent=2))  # noqa: T201 - what the command is for


if __name__ == "__main__":
    main()
