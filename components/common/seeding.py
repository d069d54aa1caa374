"""Random numbers as arguments: named streams, so that no result depends on what was drawn before."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *scope: str | int) -> int:
    """A 63-bit seed for the stream named by `scope`; distinct names give independent streams."""
    text = "\x1f".join(str(part) for part in (seed, *scope))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *scope: str | int) -> torch.Generator:
    """A CPU generator for the stream named by `scope`."""
    return torch.Generator().manual_seed(stream_seed(seed, *scope))
