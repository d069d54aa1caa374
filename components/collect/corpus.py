"""The corpus: prompts for the SAE and benign prompts, deduplicated and split without overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from components.collect.params import CorpusParams
from components.collect.tables import SOURCES
from components.common.errors import UserError
from components.worlds.base import World

_SHARES = {"sae": 0.5, "calibrate": 0.4, "evaluate": 0.1}
"""How a user's own prompts are split: a filter's threshold holds for traffic that it was calibrated on."""
_READERS = {
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True),
}


def read_source(name: str) -> list[str]:
    """The `prompt` column of a CSV, Parquet or JSONL file, or of the train split of a dataset named hf:NAME."""
    if name.startswith("hf:"):
        try:
            from datasets import load_dataset  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise UserError(
                f"corpus.sources names {name!r} but datasets is not installed", "pip install datasets"
            ) from error
        table = load_dataset(name.removeprefix("hf:"), split="train").to_pandas()
    else:
        path = Path(name)
        if path.suffix not in _READERS:
            raise UserError(
                f"corpus.sources names {name!r}", f"use a file that ends in {', '.join(_READERS)}, or hf:NAME"
            )
        if not path.is_file():
            raise UserError(f"corpus.sources names {name!r}, which does not exist", "mend the path in params.yaml")
        table = _READERS[path.suffix](path)
    if "prompt" not in table:
        raise UserError(f"{name} has no column 'prompt' but {', '.join(map(str, table.columns))}", "rename the column")
    return [p for p in table["prompt"].dropna().astype(str) if p.strip()]


def build_corpus(world: World, params: CorpusParams, extra: list[str]) -> pd.DataFrame:
    """A table (prompt, split, source), each prompt once.

    split is train or held_out for the SAE, calibrate or evaluate for benign prompts; no prompt is in two. `extra`, a user's
    own prompts, are spread over all four.
    """
    seed, benign = params.seed, params.benign
    rng = np.random.default_rng(seed)
    rows = [(world.surround(p, rng), "sae", "captions") for p in world.corpus(params.captions, seed=seed)]
    rows += [(world.surround(p, rng), "sae", "english") for p in world.benign(params.english, split="train", seed=seed)]
    rows += [(p, SOURCES, SOURCES) for p in extra]
    rows += [(p, "calibrate", "english") for p in world.benign(benign.calibrate, split="calibrate", seed=seed)]
    rows += [(p, "evaluate", "english") for p in world.benign(benign.evaluate, split="evaluate", seed=seed)]
    table = pd.DataFrame(rows, columns=["prompt", "split", "source"])
    unique = table.drop_duplicates("prompt", keep="first").reset_index(drop=True)
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
