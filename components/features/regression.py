"""Logistic regression on sparse codes, one for each name of a target, by Newton's method.

    T tokens, S features, N names of the target, n pairs of codes that differ from 0 at one token

    minimise over w, b   Σ_t v_t log(1 + exp(-y_t (w · x_t + b))) + λ/2 |w|²     Σ v = 1,  λ = 1 / (C T)

At most tokens no selected feature fires: those to retain are one row that counts so often. The Hessian touches the n pairs
alone. The model is scikit-learn's `LogisticRegression(C, class_weight="balanced")`, name by name.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.special import expit

STRENGTH = 0.1
"""C, the inverse of the L2 penalty, on features scaled to unit variance."""
_TOLERANCE = 1e-4
"""Newton's method stops after a step that gained no more than this, to second order, and left no larger slope.

scikit-learn's default: it stops before the weakly penalised directions are at their minimum, and that is what was measured.
"""
_STEPS, _HALVINGS = 100, 20


class Score(NamedTuple):
    """Linear scores over some features, one for each name."""

    weights: np.ndarray
    """(N, S)"""
    bias: np.ndarray
    """(N,)"""


class _Rows(NamedTuple):
    """Tokens of a regression, scaled, and the products that its Hessian sums."""

    x: sparse.csr_array
    """(T, S)"""
    row: np.ndarray
    """(n,) the token of each pair."""
    cell: np.ndarray
    """(n,) its place in the flattened Hessian (S, S)."""
    product: np.ndarray
    """(n,)"""


def fit_score(codes: sparse.csr_array, labels: np.ndarray, start: Score | None = None) -> Score:
    """For each name a balanced logistic regression of its tokens against those to retain.

    `codes` is (T, S); `labels` (T,) holds the index of the name whose token it is, or -1 for a token to retain. Tokens of
    other names do not count against a name. `start` may hold a solution over the first of these features.
    """
    total = len(labels)
    mean = codes.sum(0) / total
    spread = np.sqrt(np.maximum(codes.power(2).sum(0, dtype=np.float64) / total - mean.astype(np.float64) ** 2, 0)) + 1e-6
    idle = (np.diff(codes.indptr) == 0) & (labels < 0)
    some = np.flatnonzero(~idle)
    if idle.any():
        some = np.append(some, np.flatnonzero(idle)[0])
    counts = np.ones(len(some))
    counts[-1] = max(1, idle.sum())
    rows, labels = _rows(codes[some], spread), labels[some]
    found = []
    for name in range(labels.max() + 1):
        mine, against = labels == name, np.where(labels < 0, counts, 0)
        share = np.where(mine, 0.5 / mine.sum(), 0.5 * against / against.sum())  # each class has half the weight
        at = np.zeros(codes.shape[1] + 1)
        if start is not None:
            known = start.weights.shape[1]
            at[:known], at[-1] = start.weights[name] * spread[:known], start.bias[name]
        found.append(_newton(rows, mine, share, 1 / (STRENGTH * (mine.sum() + against.sum())), at))
    solved = np.stack(found)
    return Score(solved[:, :-1] / spread, solved[:, -1])


def _rows(codes: sparse.csr_array, spread: np.ndarray) -> _Rows:
    """`codes` (T, S) over `spread` (S,), and all pairs of entries of one row."""
    data, columns = codes.data / spread[codes.indices], codes.indices.astype(np.int64)
    x = sparse.csr_array((data, codes.indices, codes.indptr), shape=codes.shape)
    sizes = np.diff(codes.indptr)
    left = np.repeat(codes.indptr[1:], sizes) - np.arange(len(data))  # entries of the row from this one on
    first = np.repeat(np.arange(len(data)), left)
    second = first + np.arange(len(first)) - np.repeat(np.cumsum(left) - left, left)
    row = np.repeat(np.arange(len(sizes)), sizes)[first]
    return _Rows(x, row, columns[first] * codes.shape[1] + columns[second], data[first] * data[second])


def _newton(rows: _Rows, mine: np.ndarray, share: np.ndarray, penalty: float, at: np.ndarray) -> np.ndarray:
    """The minimum (S + 1,), intercept last, from the point `at`; `share` (T,) are the weights v."""
    x, size = rows.x, len(at) - 1
    ridge = np.append(np.full(size, penalty), 0.0)

    def loss(point: np.ndarray, z: np.ndarray) -> float:
        return float(share @ np.logaddexp(0, np.where(mine, -z, z)) + ridge @ point**2 / 2)

    def slope(point: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return np.append(x.T @ residual, residual.sum()) + ridge * point

    z = x @ at[:-1] + at[-1]
    now, p = loss(at, z), expit(z)
    gradient = slope(at, share * (p - mine))
    for _ in range(_STEPS):
        curvature = share * p * (1 - p)
        half = np.bincount(rows.cell, curvature[rows.row] * rows.product, size * size).reshape(size, size)
        hessian = np.empty((size + 1, size + 1))
        hessian[:-1, :-1] = half + half.T - np.diag(half.diagonal())
        hessian[-1, :-1] = hessian[:-1, -1] = x.T @ curvature
        hessian[-1, -1] = curvature.sum()
        hessian[np.diag_indices(size)] += penalty
        step = -linalg.solve(hessian, gradient, assume_a="pos", check_finite=False)
        gain, scale = -gradient @ step, 1.0
        moved = x @ step[:-1] + step[-1]
        for _ in range(_HALVINGS):
            after = loss(at + scale * step, z + scale * moved)
            if after <= now - scale * gain / 2048:
                break
            scale /= 2
        at, z, now = at + scale * step, z + scale * moved, after
        p = expit(z)
        gradient = slope(at, share * (p - mine))
        if max(gain / 2, np.abs(gradient).max()) <= _TOLERANCE:
            break
    return at
