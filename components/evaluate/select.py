"""Which prompts an evaluation draws, and from which seeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.evaluate.images import ImageSpec


def pick_targets(table: pd.DataFrame, request_id: str, count: int, seed: int) -> pd.DataFrame:
    """`count` prompts that show the target alone, drawn over all its names."""
    rows = where(table, (table["request"] == request_id) & table["role"].isin(("target", "alias")))
    return rows.sample(min(count, len(rows)), random_state=stream_seed(seed, request_id) % 2**32)


def pick_retain(table: pd.DataFrame, records: Mapping[str, RequestRecord], count: int, seed: int) -> pd.DataFrame:
    """`count` prompts that show no target and contain no target's name.

    Their order depends on what they say alone: one more request removes those that it touches, and others follow at the end.
    """
    targets = {label for record in records.values() for label in record.labels}
    names = tuple(name for record in records.values() for name in record.names["evaluate"])
    rows = where(table, table["role"] == "retain").drop_duplicates("prompt")
    free = rows["concepts"].map(lambda shown: not targets & set(shown)) & ~rows["style"].isin(list(targets))
    free &= ~rows["prompt"].map(lambda prompt: mentions(prompt, names))
    found = where(rows, free)
    order = np.argsort([stream_seed(seed, "unrelated", prompt) for prompt in found["prompt"]])
    return found.iloc[order[:count]]


def target_specs(chosen: pd.DataFrame, request_id: str, seeds: int, seed: int) -> tuple[ImageSpec, ...]:
    """`seeds` images of each prompt about a target."""
    return tuple(
        ImageSpec(prompt, stream_seed(seed, request_id, i, s) % 2**31)
        for i, prompt in enumerate(chosen["prompt"])
        for s in range(seeds)
    )


def retain_specs(retain: pd.DataFrame, seed: int) -> tuple[ImageSpec, ...]:
    """One image of each unrelated prompt, its noise by what the prompt says alone."""
    return tuple(ImageSpec(prompt, stream_seed(seed, "retain", prompt) % 2**31) for prompt in retain["prompt"])
