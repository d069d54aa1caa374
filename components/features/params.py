"""Section `features`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.common.sections import Section


class FeaturesParams(Section):
    """Selection of a request's features and calibration of its threshold."""

    max_features: int = Field(gt=0)
    """Most features of the target for each request."""
    context_features: int = Field(ge=0)
    """Further features that separate the target from what the score mistakes for it; evidence only."""
    min_contrast: float = Field(gt=0, lt=1)
    """Least difference in firing frequency between tokens of the target and tokens to retain."""
    fpr: float = Field(gt=0, lt=1)
    """False-positive budget of one request on calibration prompts that do not name its target."""
    fpr_all: float = Field(gt=0, lt=1)
    """False-positive budget of all requests together: each has its share of it where that is less than `fpr`."""
    acting: float = Field(ge=0)
    """Adapters that act on an unrelated prompt, on average, at most: up to so many requests all adapters act always, and the
    more requests there are, the closer to its own threshold each waits (docs/decisions/0029). With 0 an adapter acts where
    its request's filter flags, and nowhere else."""
    fit: Literal["exact", "sample"]
    """What the regressions see of the tokens to retain: `exact` is all of them; `sample` a weighted sample, about nine
    times faster, which finds up to 1.5 points fewer of the names that nobody listed (docs/decisions/0022)."""
    positions: tuple[Literal["target", "later", "eos", "padding"], ...] = Field(min_length=1)
    """Which classes of positions are edited; those before the target never are."""

    def budget(self, requests: int) -> float:
        """The false-positive budget of each of so many requests."""
        return min(self.fpr, self.fpr_all / requests)
