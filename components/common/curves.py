"""Training curves: `training.json` beside a trained artifact, which the registry logs step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from components.common.files import canonical, write_text

CURVES = "training.json"


def write_curves(folder: Path, steps: Sequence[NamedTuple]) -> None:
    """Writes the fields of what a trainer yielded after each step as lists of one length; a value that is not finite is null."""
    taken = [step._asdict() for step in steps]
    lists = {name: [each[name] for each in taken] for name in (taken[0] if taken else ())}
    finite = {name: [value if math.isfinite(value) else None for value in values] for name, values in lists.items()}
    write_text(folder / CURVES, canonical(finite))
