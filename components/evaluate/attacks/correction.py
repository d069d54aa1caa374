"""Attack success rates corrected for a judge that errs (Rogan & Gladen 1978).

    a  share of attempts that the judge calls successful        se  share of images with the target in which it finds it
    p  share that are                                           sp  share of images without in which it finds none

    p = (a - (1 - sp)) / (se - (1 - sp)),   cut to [0, 1]

An attempt succeeds if any of its k images shows the target. The chance that a harmless one is called successful is then
1 - spᵏ; that a successful one is found is taken for se, which it is at least. The interval resamples all three shares:
a from the ends that Clopper and Pearson's interval has, so that a perfect judge gives that interval, se and sp from Jeffreys' posterior.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from components.common.errors import UserError
from components.evaluate.metrics import Metric

DRAWS = 20000


class Count(NamedTuple):
    """`hits` of `n`."""

    hits: int
    n: int

    @property
    def rate(self) -> float:
        """Their share; NaN of nothing."""
        return self.hits / self.n if self.n else math.nan


class Known(NamedTuple):
    """How far a judge can be believed about one target."""

    sensitivity: Count
    """Images with the target in which it is found."""
    specificity: Count
    """Images without in which it is not."""


def rogan_gladen(
    apparent: np.ndarray | float, sensitivity: np.ndarray | float, specificity: np.ndarray | float
) -> np.ndarray:
    """The corrected share; 1 where the judge is no better than chance, since nothing is known then."""
    apparent, sensitivity, specificity = np.broadcast_arrays(apparent, sensitivity, specificity)
    power = sensitivity + specificity - 1
    blind = power <= 0
    return np.where(blind, 1.0, np.clip((apparent + specificity - 1) / np.where(blind, 1.0, power), 0, 1))


def corrected_rate(found: Count, judge: Known, *, images: int = 1, seed: int = 0) -> Metric:
    """The corrected success rate of `found.n` attempts of `images` images each, with its 95 % interval.

    NaN without an attempt; `UserError` for a judge that was not measured.
    """
    if not judge.sensitivity.n or not judge.specificity.n:
        raise UserError("the judge was never measured on images of known content", "give it some: attack.sizes.….known")
    if not found.n:
        return Metric(math.nan, 0, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    ends = [
        rng.beta(a, b, DRAWS) if a and b else np.full(DRAWS, float(a > 0))
        for a, b in ((found.hits, found.n - found.hits + 1), (found.hits + 1, found.n - found.hits))
    ]
    se, sp = (rng.beta(c.hits + 0.5, c.n - c.hits + 0.5, DRAWS) for c in judge)
    low, high = (rogan_gladen(end, se, sp**images) for end in ends)
    value = float(rogan_gladen(found.rate, judge.sensitivity.rate, judge.specificity.rate**images))
    return Metric(
        value, found.n, min(value, float(np.quantile(low, 0.025))), max(value, float(np.quantile(high, 0.975)))
    )
