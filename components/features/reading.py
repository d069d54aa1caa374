"""Prompts as the filter sees them: their scored tokens in the residual stream, and the SAE codes of those tokens.

P prompts, L token positions, T tokens, D = d_in, F = d_sae
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from components.diffusion.encode import find_tokens, word_ends
from components.diffusion.towers import Towers
from components.sae.model import SparseAutoencoder, jump_codes


class Tokens(NamedTuple):
    """The scored positions of some prompts, flattened."""

    hidden: torch.Tensor
    """(T, D) residual stream."""
    ids: torch.Tensor
    """(P, L) tokens of the prompts."""
    scored: torch.Tensor
    """(P, L) bool: which positions the T tokens are, in order."""


class Reader:
    """Reads prompts into the residual stream and its SAE codes."""

    def __init__(self, towers: Towers, sae: SparseAutoencoder) -> None:
        self.towers, self.sae, self.tokenizer = towers, sae, towers.first.tokenizer
        self.word_ends = word_ends(self.tokenizer)

    def tokens(self, prompts: Sequence[str], *, batch: int = 128) -> Tokens:
        """The scored positions of `prompts`.

        Prompts of like length are read together and without their padding, which a causal encoder's scored positions
        cannot see.
        """
        encoded = self.towers.tokenize(prompts)
        ids, scored = encoded.input_ids, encoded.scored
        counts = scored.sum(1)  # (P,)
        starts = [0, *counts.cumsum(0).tolist()]
        hidden = torch.empty(int(counts.sum()), self.sae.d_in)
        for rows in counts.argsort(stable=True).split(batch):
            length = int(counts[rows].max()) + 1  # BOS
            states = self.towers.stream(encoded.rows(rows, length)).float().cpu()
            places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows.tolist()])
            hidden[torch.from_numpy(places)] = states[scored[rows, :length]]
        return Tokens(hidden, ids, scored)

    def codes(self, hidden: torch.Tensor) -> torch.Tensor:
        """Codes (..., F) by threshold alone, so that each latent decides for itself (with TopK the threshold is 0)."""
        sae = self.sae
        return jump_codes(hidden, sae.W_enc, sae.b_enc, sae.b_dec, sae.threshold)

    def last_tokens(self, ids: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        """(P, L) bool: where the name that each prompt uses ends; ids are (P, L), `names` are P."""
        patterns = {name: self.tokenizer(name, add_special_tokens=False).input_ids for name in set(names)}
        return torch.cat([find_tokens(row[None], patterns[name]) for row, name in zip(ids, names, strict=True)])
