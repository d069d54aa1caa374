"""What adding one request costs when many exist: to select, fit and calibrate it, and to write the filter of all.

Its own prompts and what all requests share have been read, as the stage `features` reads them once for all. Those that
exist take part in nothing but the artifact, so that they are copies of a few under other ids.
"""

from __future__ import annotations

import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tqdm import tqdm

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.collect.tables import read_table, where
from components.common.files import new_folder
from components.common.paths import CORPUS, SAE
from components.common.sections import read_section
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.diffusion.towers import Towers
from components.features.fit import fit_own, read_own, read_shared
from components.features.params import FeaturesParams
from components.features.reading import Reader
from components.filter.artifact import RequestFilter, write_filters
from components.requests.requests import load_requests
from components.sae.model import open_sae
from research.filter.prompts import project_world, world_requests
from research.record import environment, publish, quartiles, spread, table

NAME = "filter_adding"
PACKAGES = ("expunge", "torch", "scipy", "numpy")
TIMED = 12
"""Requests that are added, one after the other."""


class Spent(NamedTuple):
    """Seconds to add one request."""

    fit: float
    """To select its features, fit its score and calibrate its threshold."""
    write: float
    """To write the filter of all requests anew."""


def time_additions(count: int, fit: Literal["exact", "sample"]) -> list[Spent]:
    """Seconds to add each of `TIMED` requests to `count`, its own prompts read, with this `features.fit`."""
    base, concepts = read_section("base", BaseParams), read_section("concepts", ConceptsParams)
    settings, world = read_section("features", FeaturesParams).model_copy(update={"fit": fit}), project_world()
    reader = Reader(load_towers(base.path, base.hookpoints), open_sae(SAE, base.path))
    shared = read_shared(read_table(CORPUS), reader)
    requests = world_requests(TIMED, load_requests(), world, seed=concepts.seed)
    prompts = build_prompts(requests, world, concepts)
    records = {i: make_record(i, request, world) for i, request in requests.items()}
    own = {i: read_own(record, where(prompts, prompts["request"] == i), reader) for i, record in records.items()}
    fitted = [fit_own(records[i], own[i], shared, settings)[0] for i in requests]  # also warms up
    existing = {f"existing-{n}": fitted[n % len(fitted)] for n in range(count)}
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for i, record in tqdm(records.items(), desc=f"add to {count}", unit="request"):
            begun = time.perf_counter()
            item, _ = fit_own(record, own[i], shared, settings)
            between = time.perf_counter()
            write_all(Path(folder) / "filter", existing | {i: item}, reader.towers)
            out.append(Spent(between - begun, time.perf_counter() - between))
    return out


def write_all(folder: Path, filters: dict[str, RequestFilter], towers: Towers) -> None:
    """The filter of all requests, as the stage writes it."""
    with new_folder(folder) as partial:
        write_filters(partial, filters, towers=towers, params={}, inputs={}, facts={})


def run(counts: list[int]) -> None:
    """Measures and publishes."""
    found = {}
    for count, fit in product(counts, get_args(FeaturesParams.model_fields["fit"].annotation)):
        spent = time_additions(count, fit)
        steps = {step: quartiles([getattr(each, step) for each in spent]) for step in Spent._fields}
        found[f"{count}, {fit}"] = steps | {"total": quartiles([sum(each) for each in spent])}
    rows = [[count, *(spread(steps[step]) for step in (*Spent._fields, "total"))] for count, steps in found.items()]
    text = "seconds, median [quartiles]\n\n" + table(
        ("requests that exist, features.fit", *Spent._fields, "total"), rows
    )
    publish(NAME, {"environment": environment(PACKAGES), "seconds_to_add": found}, text)
