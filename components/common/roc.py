"""Receiver operating characteristics.

N positives and M negatives, one score each
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Roc(NamedTuple):
    """One point a threshold, from the strictest."""

    thresholds: np.ndarray
    tpr: np.ndarray
    fpr: np.ndarray


def roc(positives: np.ndarray, negatives: np.ndarray) -> Roc:
    """True- and false-positive rate when a score at or above each observed value is flagged."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    tpr, fpr = (1 - np.searchsorted(np.sort(each), thresholds) / len(each) for each in (positives, negatives))
    return Roc(thresholds, tpr, fpr)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, side="left")
    equal = np.searchsorted(ranked, positives, side="right") - below
    return float((below + equal / 2).mean() / len(negatives))
