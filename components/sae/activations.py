"""The residual stream at the hookpoints, streamed from prompts to a file and read back a batch at a time.

    P prompts, L token positions, T tokens, D = d_in, of all text encoders together

BOS is left out (it is one vector for every prompt), and of the padding only a share is kept: it repeats the prompt's
meaning thirty times over and would crowd out the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from components.common.files import naming
from components.common.seeding import generator
from components.diffusion.towers import Towers


class ActivationStore:
    """Tokens (T, D) in a file; only the batch that is asked for is ever in memory."""

    def __init__(self, path: Path, d_in: int) -> None:
        self.tokens = np.memmap(path, dtype=np.float32, mode="r").reshape(-1, d_in)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, size: int, rng: torch.Generator) -> torch.Tensor:
        """`size` tokens drawn at random, (size, D)."""
        rows = torch.randint(len(self.tokens), (size,), generator=rng).sort().values
        return torch.from_numpy(self.tokens[rows.numpy()])


def cache_activations(
    path: Path,
    towers: Towers,
    prompts: Sequence[str],
    *,
    padding: float,  # share of padding positions to keep
    seed: int,
    batch: int = 256,  # prompts
) -> ActivationStore:
    """Streams the kept positions of every prompt into `path`, overwriting it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    d_in = 0
    with naming(path), path.open("wb") as file:
        for start in tqdm(range(0, len(prompts), batch), desc="activations", unit="batch", mininterval=5):
            encoded = towers.tokenize(prompts[start : start + batch])
            hidden = towers.stream(encoded).float().cpu()  # (B, L, D)
            chance = torch.rand(encoded.scored.shape, generator=generator(seed, "padding", start))
            keep = encoded.scored | (chance < padding)
            keep[:, 0] = False
            tokens = hidden[keep]  # (T, D)
            d_in = tokens.shape[1]
            file.write(tokens.numpy().tobytes())
    return ActivationStore(path, d_in)
