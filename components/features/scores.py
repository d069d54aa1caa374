"""Which latents belong to a concept, how they add up to a score, and where the score's threshold lies.

    P prompts, L token positions, D = d_in, F = d_sae, S selected features

    a_f = max over scored positions of z_f;   contrast_f = max over names of freq_f(name) - max over kept groups of freq_f
    score = w · a_S + b                                             (logistic regression on the selection prompts)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from components.common.errors import UserError


class Roc(NamedTuple):
    """A receiver operating characteristic, one point a threshold, from the strictest."""

    thresholds: np.ndarray
    tpr: np.ndarray
    fpr: np.ndarray


def pooled_codes(codes: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Each latent's largest activation over the scored positions: (P, L, F) and (P, L) to (P, F)."""
    return codes.masked_fill(~scored[..., None], 0.0).amax(1)


def select_features(
    pooled: torch.Tensor,  # (P, F)
    names: Mapping[str, np.ndarray],  # rows of the prompts about each name of the target
    kept: Mapping[str, np.ndarray],  # rows of the prompts of each group to retain
    *,
    max_features: int,
    min_contrast: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, contrast) of the latents that fire for a name of the target and not for what is kept, strongest first.

    Frequencies are taken a name and a group at a time, so that neither a rare alias nor a small neighbour is outvoted.
    Every name puts forward its best latents in turn. `UserError` when no latent reaches `min_contrast`.
    """
    fires = (pooled > 0).float()
    background = torch.stack([fires[rows].mean(0) for rows in kept.values() if len(rows)]).amax(0)  # (F,)
    contrast = torch.stack([fires[rows].mean(0) - background for rows in names.values() if len(rows)])  # (N, F)
    best = contrast.amax(0)
    order = contrast.argsort(dim=1, descending=True, stable=True)  # (N, F)
    chosen: dict[int, None] = {}
    for rank in range(order.shape[1]):
        for name in range(order.shape[0]):
            latent = int(order[name, rank])
            if contrast[name, latent] >= min_contrast and len(chosen) < max_features:
                chosen.setdefault(latent)
        if len(chosen) >= max_features or bool((contrast.gather(1, order[:, rank : rank + 1]) < min_contrast).all()):
            break
    if not chosen:
        raise UserError(
            f"no latent tells the target from what is kept (best contrast {best.max():.2f})",
            f"lower features.min_contrast (now {min_contrast}) or train the SAE longer",
        )
    indices = torch.tensor(list(chosen))
    return indices, best[indices]


def fit_score(activations: np.ndarray, carries: np.ndarray) -> tuple[np.ndarray, float]:
    """(weights (S,), bias) of a balanced logistic regression from activations (P, S) to whether the target is carried."""
    spread = activations.std(0) + 1e-6
    model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000).fit(activations / spread, carries)
    return model.coef_[0] / spread, float(model.intercept_[0])


def conformal_threshold(negatives: np.ndarray, fpr: float) -> float:
    """The least threshold whose false-positive rate is at most `fpr` for a fresh prompt like `negatives` (N,).

    Split conformal prediction (Vovk et al. 2005): with m calibration scores at or above the threshold, an exchangeable
    new one is flagged with probability at most (m + 1) / (N + 1). `UserError` when N is too small for the budget.
    """
    allowed = int(np.floor(fpr * (len(negatives) + 1))) - 1
    if allowed < 0:
        raise UserError(
            f"{len(negatives)} benign calibration prompts cannot support a false-positive budget of {fpr}",
            f"raise corpus.benign until there are {int(np.ceil(1 / fpr))}",
        )
    ranked = np.sort(negatives)[::-1]
    return float(np.nextafter(np.float32(ranked[allowed]), np.float32(np.inf)))


def roc(positives: np.ndarray, negatives: np.ndarray) -> Roc:
    """True- and false-positive rate when a score at or above each observed value is flagged."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    tpr = (positives[None] >= thresholds[:, None]).mean(1)
    fpr = (negatives[None] >= thresholds[:, None]).mean(1)
    return Roc(thresholds, tpr, fpr)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, side="left")
    equal = np.searchsorted(ranked, positives, side="right") - below
    return float((below + equal / 2).mean() / len(negatives))
