"""Which latents belong to a concept, and where the threshold of its score lies.

    P prompts, L token positions, F = d_sae, S selected features, N names of the target, G groups to retain

    contrast_f(n) = P(f fires at a token of name n) - max over groups of P(f fires at a token of the group)

The score itself is fitted in components/features/regression.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import genpareto

from components.common.errors import UserError

MANY = 500
"""Scores from which on a tail can be fitted."""
TAIL, LEAST, REACH = 0.02, 50, 100
"""The share of scores that is the tail, the fewest that are, and how many times rarer than 1/N a tail is trusted to tell."""


def select_features(
    names: torch.Tensor,  # (N, F): how often each latent fires at a token of each name
    retain: torch.Tensor,  # (G, F): how often it fires at a token of each group to retain
    *,
    max_features: int,
    min_contrast: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, contrast) of the latents that fire for a name of the target and not for what to retain.

    Frequencies are taken a name and a group at a time, so that neither a rare alias nor a small neighbour is outvoted,
    and every name puts forward its best latents in turn. `UserError` when no latent reaches `min_contrast`.
    """
    contrast = names - retain.amax(0)  # (N, F)
    best = contrast.amax(0)
    order = contrast.argsort(dim=1, descending=True, stable=True)[:, :max_features]  # (N, max_features)
    in_turn = order.T.flatten().tolist()
    enough = contrast.gather(1, order).T.flatten() >= min_contrast
    chosen = list(dict.fromkeys(f for f, ok in zip(in_turn, enough.tolist(), strict=True) if ok))[:max_features]
    if not chosen:
        raise UserError(
            f"no latent separates the target from what to retain (best contrast {best.max():.2f})",
            f"lower features.min_contrast (now {min_contrast}) or train the SAE longer",
        )
    indices = torch.tensor(chosen)
    return indices, best[indices]


def context_features(
    names: torch.Tensor,  # (N, F): how often each latent fires at a token of each name
    mistaken: torch.Tensor,  # (F,): how often it fires at the tokens to retain that are most like the target
    taken: torch.Tensor,  # (S,): features selected already
    count: int,
) -> torch.Tensor:
    """Indices of the `count` further latents whose firing best separates a name from what is mistaken for it.

    They are evidence only, for the target or against it: they take part in the score and never in the edit.
    """
    gap = (names - mistaken).abs().amax(0)
    gap[taken] = -1.0
    return gap.topk(min(count, len(gap) - len(taken))).indices


def conformal_threshold(negatives: np.ndarray, fpr: float) -> float:
    """The least threshold whose false-positive rate is at most `fpr` for a fresh prompt like `negatives` (N,).

    Split conformal prediction (Vovk et al. 2005): with m calibration scores at or above the threshold, an exchangeable
    new one is flagged with probability at most (m + 1) / (N + 1). `UserError` when N is too small for the budget.
    """
    allowed = int(np.floor(fpr * (len(negatives) + 1))) - 1
    if allowed < 0:
        raise UserError(
            f"{len(negatives)} benign calibration prompts cannot support a false-positive budget of {fpr}",
            f"raise corpus.benign.calibrate until there are {int(np.ceil(1 / fpr))}",
        )
    ranked = np.sort(negatives)[::-1]
    return float(np.nextafter(np.float32(ranked[allowed]), np.float32(np.inf)))


def tail_threshold(negatives: np.ndarray, fpr: float) -> float:
    """The threshold that a fresh prompt like `negatives` (N,) reaches with probability `fpr`, which may be well below 1/N.

    The excesses over a high quantile follow a generalised Pareto distribution, whatever the scores' own is (Pickands 1975), and it
    is fitted to the highest share `TAIL` of them. `UserError` where the budget lies further beyond the data than `REACH`.
    """
    if fpr * len(negatives) * REACH < 1:
        raise UserError(
            f"{len(negatives)} benign calibration prompts cannot support a false-positive budget of {fpr:.1e}",
            f"raise corpus.benign.calibrate until there are {int(np.ceil(1 / fpr / REACH))}, or features.fpr_all",
        )
    ranked = np.sort(negatives)[::-1].astype(float)
    count = max(LEAST, int(TAIL * len(ranked)))
    base = ranked[count]
    shape, _, scale = genpareto.fit(ranked[:count] - base, floc=0)
    if (
        shape < 0
    ):  # a tail that ends somewhere: so few excesses cannot show where, and an exponential one is on the safe side
        shape, scale = 0.0, float((ranked[:count] - base).mean())
    beyond = float(base + genpareto.isf(min(1.0, fpr * len(ranked) / count), shape, scale=scale))
    return float(np.nextafter(np.float32(beyond), np.float32(np.inf)))


def budget_threshold(negatives: np.ndarray, fpr: float) -> float:
    """The least threshold that keeps the budget: by rank while that is possible; beyond, by the tail, and above every score."""
    if fpr * (len(negatives) + 1) >= 1 or len(negatives) < MANY:
        return conformal_threshold(negatives, fpr)
    return max(tail_threshold(negatives, fpr), float(np.nextafter(np.float32(negatives.max()), np.float32(np.inf))))


def strictest_threshold(groups: Sequence[np.ndarray], fpr: float) -> float:
    """The least threshold that keeps the budget in each of `groups` (Mondrian conformal prediction, Vovk et al. 2005).

    A group that is too small to show that on its own is kept together with the first.
    """
    first, *others = groups
    pooled = np.concatenate([first, *(group for group in others if not stands_alone(group, fpr))])
    alone = [group for group in others if stands_alone(group, fpr)]
    return max(budget_threshold(group, fpr) for group in (first, pooled, *alone))


def gate_threshold(groups: Sequence[np.ndarray], rate: float) -> float:
    """The threshold at which a prompt's adapter acts on the share `rate` of prompts like `groups`; -inf where it acts on all."""
    return -float("inf") if rate >= 1 else strictest_threshold(groups, rate)


def stands_alone(group: np.ndarray, fpr: float) -> bool:
    """Whether so many scores can show a false-positive rate of `fpr`, by rank or by their tail."""
    return bool(len(group) >= min(1 / fpr, max(MANY, 1 / fpr / REACH)))
