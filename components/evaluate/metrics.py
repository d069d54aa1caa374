"""Metrics as values with n and an interval.

    UA   unlearning accuracy: share of target images in which the judge no longer finds the target
    IRA  in-domain retain accuracy: share of retain images whose other concepts of the target's kind are found
    CRA  cross-domain retain accuracy: the same for the other kind (UnlearnCanvas, Zhang et al. 2024)

Proportions carry Wilson's score interval, means a normal one, changes of pairs Agresti and Min's, all at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm
from skimage.metrics import structural_similarity

from components.common.roc import auroc

_Z = float(norm.ppf(0.975))
ROUND = 6
"""Digits kept in metrics.json."""


class Metric(NamedTuple):
    """A number, what it rests on, and its 95 % interval."""

    value: float
    n: int
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """The form of metrics.json; a metric that has no value is null, never a number."""
        return {k: (v if k == "n" else _plain(v)) for k, v in self._asdict().items()}  # type: ignore[misc]


def _plain(value: float) -> float | None:
    return round(float(value), ROUND) if math.isfinite(value) else None


def proportion(hits: Sequence[bool] | np.ndarray) -> Metric:
    """Share of hits, with Wilson's interval (Wilson 1927); NaN when there is nothing to count."""
    n = len(hits)
    if n == 0:
        return Metric(math.nan, 0, math.nan, math.nan)
    p = float(np.mean(np.asarray(hits, dtype=float)))
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Metric(p, n, max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float] | np.ndarray) -> Metric:
    """Mean with a normal 95 % interval; NaN when there is nothing to average."""
    n = len(values)
    if n == 0:
        return Metric(math.nan, 0, math.nan, math.nan)
    mean = float(np.mean(values))
    half = _Z * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Metric(mean, n, mean - half, mean + half)


def paired_change(before: np.ndarray, after: np.ndarray) -> Metric:
    """Share of hits after less that before, of the same N things, with Agresti and Min's interval (2005).

    It adds half a thing to each of the four ways that a pair can come out, so that no change at all is no certainty either.
    """
    n, change = len(before), after.astype(float) - before
    if n == 0:
        return Metric(math.nan, 0, math.nan, math.nan)
    moved, middle = (np.abs(change).sum() + 1) / (n + 2), change.sum() / (n + 2)
    half = _Z * math.sqrt((moved - middle**2) / (n + 2))
    return Metric(float(change.mean()), n, max(-1.0, middle - half), min(1.0, middle + half))


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 10, resamples: int = 400) -> Metric:
    """Expected calibration error of answers (N,) given with `confidence` in [0, 1] (Guo et al. 2017, eq. 3).

    The mean over answers of |accuracy - mean confidence| of their bin; the interval is a percentile bootstrap.
    """
    correct, which = np.asarray(correct, float), np.minimum((confidence * bins).astype(int), bins - 1)
    if len(correct) == 0:
        return Metric(math.nan, 0, math.nan, math.nan)

    def error(rows: np.ndarray) -> float:
        gaps = np.bincount(which[rows], correct[rows] - confidence[rows], bins)
        return float(np.abs(gaps).sum() / len(rows))

    rng = np.random.default_rng(0)
    drawn = [error(rng.integers(len(correct), size=len(correct))) for _ in range(resamples)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    value = error(np.arange(len(correct)))
    return Metric(value, len(correct), min(value, float(low)), max(value, float(high)))


def likeness(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """SSIM (Wang et al. 2004) of each image to its reference, (B, H, W, 3) uint8 twice to (B,)."""
    return np.array([structural_similarity(a, b, channel_axis=2) for a, b in zip(references, images, strict=True)])


def rate_of(found: Sequence[frozenset[str]], wanted: Sequence[frozenset[str]]) -> np.ndarray:
    """For each image whether all the wanted concepts are found in it."""
    return np.array([want <= have for have, want in zip(found, wanted, strict=True)])


def auroc_of(positives: np.ndarray, negatives: np.ndarray) -> Metric:
    """AUROC with its 95 % interval by Hanley and McNeil (1982); n counts both groups; NaN where one is empty."""
    p, n = len(positives), len(negatives)
    if not p or not n:
        return Metric(math.nan, p + n, math.nan, math.nan)
    a = auroc(positives, negatives)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    half = _Z * math.sqrt(max(0.0, a * (1 - a) + (p - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (p * n))
    return Metric(a, p + n, max(0.0, a - half), min(1.0, a + half))
