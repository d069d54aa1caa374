"""Tables of prompts, as the stages `corpus` and `concepts` write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd

from components.common.errors import ArtifactError
from components.common.files import canonical

TABLE = "prompts.parquet"
COUNTS = "counts.json"
SOURCES, REAL = "sources", "real"
"""Where a prompt of `corpus.sources`, and one of `corpus.benign.real`, says that it comes from."""


def write_table(folder: Path, table: pd.DataFrame, *, counted: list[str]) -> None:
    """Writes one table and the counts of its groups into a folder that is being filled."""
    table.reset_index(drop=True).to_parquet(folder / TABLE, index=False)
    counts = {"/".join(map(str, key)): int(n) for key, n in table.groupby(counted).size().items()}  # type: ignore[arg-type]
    (folder / COUNTS).write_text(canonical(counts), encoding="utf-8")


def read_table(folder: Path) -> pd.DataFrame:
    """The prompts of a stage, lists as tuples; `ArtifactError` if the stage has not run."""
    path = folder / TABLE
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "run the stage that writes it: dvc repro concepts")
    table = pd.read_parquet(path)
    if "concepts" in table:
        table["concepts"] = table["concepts"].map(tuple)
    return table


def where(table: pd.DataFrame, wanted: Any) -> pd.DataFrame:  # noqa: ANN401 - pandas types no comparison
    """The rows of `table` that `wanted` (N,) bool marks; the index stays as it is."""
    return cast("pd.DataFrame", table[wanted])
