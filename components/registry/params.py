"""Section `promote`: what a release needs beside its gates to become champion."""

from __future__ import annotations

from pydantic import Field, model_validator

from components.common.sections import Section
from components.evaluate.params import check_metric


class PromoteParams(Section):
    """Promotion. No stage reads this section."""

    size: str = "full"
    """Smallest size of an evaluation that promotes: a key of `images`."""
    images: dict[str, int] = Field(default={"quick": 24, "full": 142})
    """By size of the evaluation, the fewest images behind a gate on erasure: of 142 at most 2 may fail for an upper bound of 5 %."""
    margin: dict[str, float] = Field(default={})
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
