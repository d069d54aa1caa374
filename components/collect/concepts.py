"""For each request: what the world knows of it, and the prompts that it is selected, calibrated and evaluated on.

The templates of the three splits are disjoint, and so are the aliases: the last alias of the target is only ever in the
evaluation. A prompt names the target when one of its names is in it, whatever its role.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from components.collect.names import shields, target_forms, words_beside
from components.collect.params import ConceptsParams
from components.collect.record import RequestRecord
from components.collect.spelling import misspellings
from components.common.seeding import stream_seed
from components.common.splits import Split
from components.requests.requests import Request
from components.worlds.base import Counts, Prompt, World

MEASURED: tuple[Split, ...] = ("select", "calibrate", "evaluate")


def make_record(request_id: str, request: Request, world: World) -> RequestRecord:
    """What later stages need to know of one request."""
    names: dict[Split, tuple[str, ...]] = {split: world.names(request, split) for split in MEASURED}
    labels, forms = world.labels(request), target_forms(names["evaluate"], request.languages)
    beside = [label for label in (request.anchor, *request.neighbours) if label]
    return RequestRecord(
        id=request_id,
        request=request,
        names=names,
        misspellings=tuple(misspellings(names["evaluate"], world.known_words(), request.languages)),
        forms=forms,
        shields=(
            *shields(names["evaluate"], (*request.neighbours, *world.known_names())),
            *words_beside(forms, world.known_words()),
        ),
        labels=labels,
        is_style=request.kind == "style",
        avoid=tuple(dict.fromkeys([*labels, *beside])),
    )


def build_prompts(requests: Mapping[str, Request], world: World, params: ConceptsParams) -> pd.DataFrame:
    """All prompts of all requests as one table, with the columns that `read_prompts` documents."""
    counts = Counts(params.per_name, params.retain, params.mixed)
    rows: list[dict[str, object]] = []
    for request_id, request in requests.items():
        for split in MEASURED:
            rng = np.random.default_rng(stream_seed(params.seed, request_id, split))
            for role, prompt in world.prompts(request, split, rng, counts):
                if split != "evaluate":
                    prompt = _surrounded(prompt, world, int(rng.integers(2**32)))
                rows.append(
                    {
                        "request": request_id,
                        "split": split,
                        "role": role,
                        "prompt": prompt.text,
                        "concepts": prompt.concepts,
                        "style": prompt.style,
                        "names_target": bool(prompt.name_used),
                        "name_used": prompt.name_used,
                        "pair": len(prompt.concepts) > 1,
                        "counterpart": prompt.counterpart,
                    }
                )
    table = pd.DataFrame(rows)
    return table.drop_duplicates(["request", "split", "prompt"]).reset_index(drop=True)


def _surrounded(prompt: Prompt, world: World, seed: int) -> Prompt:
    """Every other prompt among fillers, its counterpart among the same ones; one in three of those far from its start."""
    before = 10 if seed % 3 == 0 else 4
    text, twin = (
        world.surround(t, np.random.default_rng(seed), before=before) if t else ""
        for t in (prompt.text, prompt.counterpart)
    )
    return prompt._replace(text=text, counterpart=twin)
