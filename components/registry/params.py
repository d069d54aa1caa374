"""Section `promote`: what a release needs beside its gates to become champion."""

from __future__ import annotations

from pydantic import model_validator

from components.common.errors import UserError
from components.common.sections import Section
from components.evaluate.attacks.params import AttackParams
from components.evaluate.params import EvaluateParams, check_metric


class PromoteParams(Section):
    """Promotion. No stage reads this section."""

    size: str
    """Smallest size of an evaluation that promotes: a key of `images`."""
    images: dict[str, int]
    """By size of the evaluation and of the attacks, the fewest images behind a gate on erasure: of 142 at most 2 may fail for an
    upper bound of 5 %. A size that is not listed promotes nothing."""
    margin: dict[str, float]
    """By metric, how much worse than the champion's a value may be, in the metric's unit; 0 for a metric that is not listed."""

    @model_validator(mode="after")
    def _makes_sense(self) -> PromoteParams:
        if self.size not in self.images:
            raise ValueError(f"promote.size={self.size!r} is not among promote.images ({', '.join(self.images)})")
        if min(self.images.values()) < 1 or min(self.margin.values(), default=0) < 0:
            raise ValueError("promote.images are counts and promote.margin is not negative")
        for metric in self.margin:
            check_metric("promote.margin", metric)
        return self


def check_sizes(promote: PromoteParams, evaluate: EvaluateParams, attack: AttackParams) -> None:
    """`UserError` for a size in `promote.images` that no evaluation and no attacks have."""
    known = dict.fromkeys([*evaluate.sizes, *attack.sizes])
    for size in promote.images:
        if size not in known:
            raise UserError(
                f"promote.images names the size {size!r}, which evaluate.sizes and attack.sizes lack",
                f"use some of: {', '.join(known)}",
            )
