"""How well the filters detect, and whether a prompt that none flags passes through to the bit (invariant 1).

    P prompts, R requests

Every prompt is encoded once by the stock encoder and once with all filters. A request's score does not depend on the other
requests, so that one pass serves every scope.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from components.collect.record import RequestRecord
from components.collect.tables import SOURCES, where
from components.common.words import mentions
from components.diffusion.conditioning import Conditioning
from components.eraser import Eraser
from components.evaluate.metrics import Metric, auroc_of, proportion
from components.filter.edit import find_target

_BATCH = 256


def largest_change(one: Conditioning, other: Conditioning) -> torch.Tensor:
    """(B,) the largest difference of any number that the U-Net reads of a prompt, pooled output included."""
    change = (one.states - other.states).abs().amax((1, 2))
    if one.pooled is None or other.pooled is None:
        return change
    return torch.maximum(change, (one.pooled - other.pooled).abs().amax(1))


class Seen(NamedTuple):
    """What the filters say of P prompts."""

    rows: dict[str, int]
    """The row of each prompt."""
    requests: tuple[str, ...]
    margin: np.ndarray
    """(P, R) score less the threshold: at least 0 where flagged."""
    named: np.ndarray
    """(P, R) whether a name on the request's list, or a slip of one, stands in the prompt."""
    moved: np.ndarray
    """(P,) largest change of what the U-Net reads, with all filters."""

    def of(self, prompts: Sequence[str]) -> list[int]:
        """Their rows."""
        return [self.rows[prompt] for prompt in prompts]


def see(eraser: Eraser, prompts: Sequence[str]) -> Seen:
    """Runs every filter on each distinct prompt."""
    unique, names = list(dict.fromkeys(prompts)), tuple(eraser.filters)
    limits = torch.stack([eraser.filters[name].decision_threshold for name in names])
    margin, named, moved = [], [], []
    for start in range(0, len(unique), _BATCH):
        part = unique[start : start + _BATCH]
        edited = eraser.read(part, variant="filter", requests=names)
        stock = eraser.read(part, variant="base")
        ids = eraser.towers.tokenize(part).input_ids
        margin.append(edited.decision.scores - limits)
        named.append(torch.stack([find_target(ids, eraser.filters[name]).any(1) for name in names], 1))
        moved.append(largest_change(edited.cond, stock.cond))
    rows = {prompt: row for row, prompt in enumerate(unique)}
    return Seen(rows, names, *(torch.cat(parts).numpy() for parts in (margin, named, moved)))


def measure_filters(
    eraser: Eraser,
    records: Mapping[str, RequestRecord],
    scopes: Mapping[str, Sequence[str]],
    table: pd.DataFrame,
    corpus: pd.DataFrame,
) -> dict[str, dict[str, Any]]:
    """For each scope with a filter: AUROC, TPR and FPR of its filters together, and the largest change of a prompt that none flags.

    `table` and `corpus` hold prompts of the evaluation alone. A prompt's score is its best margin over a threshold, so that
    several requests are ranked by one number. Prompts that name a target are no negatives, whichever request they were
    written for.
    """
    if not eraser.filters:
        return {}
    seen = see(eraser, [*table["prompt"], *corpus["prompt"]])
    out = {}
    for scope, members in scopes.items():
        names = [name for name in members if name in eraser.filters]
        if names:
            groups = group_prompts([records[name] for name in names], seen, table, corpus)
            found = score_groups(eraser, names, seen, groups)
            out[scope] = {name: metric.record() for name, metric in found.items()}
    return out


def group_prompts(
    records: Sequence[RequestRecord], seen: Seen, table: pd.DataFrame, corpus: pd.DataFrame
) -> dict[str, list[str]]:
    """Prompts that name a target (positive), others about the requests (near), everyday ones (benign), the user's own (traffic)."""
    names = tuple(name for record in records for name in record.names["evaluate"])
    rows = where(table, table["request"].isin([record.id for record in records])).drop_duplicates("prompt")
    columns = [seen.requests.index(record.id) for record in records]
    ours = set(table["prompt"])  # a user's own prompt may be one of ours
    groups = {
        "positive": rows.loc[rows["names_target"], "prompt"].tolist(),
        "near": [p for p in rows.loc[~rows["names_target"], "prompt"] if not mentions(p, names)],
        "benign": [],
    }
    for source, listed in corpus.groupby("source", sort=True):
        texts = listed["prompt"].tolist()
        named = {p for p in texts if seen.named[seen.rows[p], columns].any()}
        free = [p for p in texts if not (p in named or p in ours or mentions(p, names))]
        groups["traffic" if source == SOURCES else "benign"] = free
    if not groups.get("traffic"):  # of a few prompts of the user's own all may name a target
        groups.pop("traffic", None)
    return groups


def score_groups(
    eraser: Eraser, names: Sequence[str], seen: Seen, groups: Mapping[str, Sequence[str]]
) -> dict[str, Metric]:
    """The metrics of some filters together."""
    columns = [seen.requests.index(name) for name in names]
    margin = {group: seen.margin[seen.of(prompts)][:, columns].max(1) for group, prompts in groups.items()}
    quiet = [p for group, prompts in groups.items() for p, m in zip(prompts, margin[group], strict=True) if m < 0]
    others = np.concatenate([margin["near"], margin["benign"]])
    found = {
        "auroc": auroc_of(margin["positive"], others),
        "tpr": proportion(margin["positive"] >= 0),
        "fpr": proportion(margin["benign"] >= 0),
        "fpr_neighbours": proportion(margin["near"] >= 0),
        "passthrough_max_abs": passthrough(eraser, names, seen, quiet),
    }
    if "traffic" in margin:
        found["fpr_traffic"] = proportion(margin["traffic"] >= 0)
    return found


def passthrough(eraser: Eraser, names: Sequence[str], seen: Seen, quiet: Sequence[str]) -> Metric:
    """The largest change that the filters `names` make of prompts that they do not flag.

    What a filter beside them flags was edited for it, so such prompts are encoded again under these alone.
    """
    again = [p for p in quiet if (seen.margin[seen.rows[p]] >= 0).any()]
    moved = max((float(seen.moved[seen.rows[p]]) for p in set(quiet) - set(again)), default=0.0)
    for start in range(0, len(again), _BATCH):
        part = again[start : start + _BATCH]
        edited, stock = eraser.read(part, variant="filter", requests=names), eraser.read(part, variant="base")
        moved = max(moved, float(largest_change(edited.cond, stock.cond).max()))
    return Metric(moved, len(quiet), moved, moved)
