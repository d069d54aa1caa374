"""The four disjoint sets into which every prompt falls."""

from __future__ import annotations

from typing import Literal, get_args

Split = Literal["train", "select", "calibrate", "evaluate"]
"""train: what the SAE and the base model learn from; the others are a request's own. Their templates are disjoint."""
SPLITS: tuple[Split, ...] = get_args(Split)
