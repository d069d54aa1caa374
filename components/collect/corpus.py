"""The corpus: prompts for the SAE and benign prompts, deduplicated and split without overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from components.collect.params import CorpusParams
from components.collect.tables import REAL, SOURCES, where
from components.common.words import folded
from components.worlds.base import World

_SHARES = {"sae": 0.5, "calibrate": 0.4, "evaluate": 0.1}
"""How a user's own prompts are split: a filter's threshold holds for traffic that it was calibrated on."""


def build_corpus(world: World, params: CorpusParams, extra: list[str], real: Sequence[str] = ()) -> pd.DataFrame:
    """A table (prompt, split, source), each prompt once: with prompts in `extra`, once in whatever case, spacing or Unicode form.

    split is train or held_out for the SAE, calibrate or evaluate for benign prompts; no prompt is in two. `extra`, a user's
    own prompts, are spread over all four; `real` ones, which people wrote, are for the calibration.
    """
    seed, benign = params.seed, params.benign
    rng = np.random.default_rng(seed)
    rows = [(world.surround(p, rng), "sae", "captions") for p in world.corpus(params.captions, seed=seed)]
    rows += [(world.surround(p, rng), "sae", "english") for p in world.benign(params.english, split="train", seed=seed)]
    rows += [(p, SOURCES, SOURCES) for p in extra]
    rows += [(p, "calibrate", "english") for p in world.benign(benign.calibrate, split="calibrate", seed=seed)]
    rows += [(p, "evaluate", "english") for p in world.benign(benign.evaluate, split="evaluate", seed=seed)]
    rows += [(p, "calibrate", REAL) for p in real]
    table = pd.DataFrame(rows, columns=["prompt", "split", "source"])
    forms = table["prompt"].map(folded) if extra else table["prompt"]
    unique = where(table, ~forms.duplicated()).reset_index(drop=True)
    own = np.random.default_rng([seed, 1]).permutation(np.flatnonzero(unique["split"] == SOURCES))
    cuts = np.round(np.cumsum(list(_SHARES.values()))[:-1] * len(own)).astype(int)
    for split, chosen in zip(_SHARES, np.split(own, cuts), strict=True):
        unique.loc[chosen, "split"] = split
    rng = np.random.default_rng(seed)
    for_sae = np.flatnonzero(unique["split"] == "sae")
    held_out = rng.permutation(for_sae)[: int(params.held_out * len(for_sae))]
    unique.loc[for_sae, "split"] = "train"
    unique.loc[held_out, "split"] = "held_out"
    return unique
