"""Neighbours of a target by the user's own text encoder: what lies near it there is what its erasure may damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from components.common.words import mentions
from components.requests.requests import Request

Encode = Callable[[Sequence[str]], np.ndarray]
"""N texts to (N, D) embeddings."""


def suggest_neighbours(
    request: Request, candidates: Sequence[str], encode: Encode, *, count: int = 4
) -> tuple[str, ...]:
    """The `count` candidates nearest to the target, nearest first.

    Nearness is the cosine after the candidates' mean is taken away, which all texts of an encoder share. Names of the
    target, and candidates that contain one, are left out, and so is the anchor.
    """
    free = [c for c in candidates if c != request.anchor and not mentions(c, request.names)]
    if not free:
        return ()
    near, own = np.asarray(encode(free), float), np.asarray(encode([request.target]), float)
    middle = near.mean(0)
    near, own = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (near - middle, own - middle))
    return tuple(free[i] for i in np.argsort(-(near @ own[0]), kind="stable")[:count])
