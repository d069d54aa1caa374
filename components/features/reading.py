"""Prompts as the filter sees them: their scored tokens in the residual stream, and the SAE codes of those tokens.

P prompts, L token positions, T tokens, D = d_in, F = d_sae, S selected features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import nn
from transformers import CLIPTokenizer

from components.diffusion.encode import find_tokens, tokenize, word_ends
from components.diffusion.hooks import read_hookpoint
from components.filter.scores import position_scores
from components.sae.model import SparseAutoencoder, jump_codes


class Tokens(NamedTuple):
    """The scored positions of some prompts, flattened."""

    hidden: torch.Tensor
    """(T, D) residual stream."""
    ids: torch.Tensor
    """(P, L) tokens of the prompts."""
    scored: torch.Tensor
    """(P, L) bool: which positions the T tokens are, in order."""

    @property
    def prompt(self) -> torch.Tensor:
        """(T,) the prompt that each token belongs to."""
        return self.scored.nonzero()[:, 0]


def without(tokens: Tokens, drop: list[bool]) -> Tokens:
    """The tokens of the prompts that are not dropped."""
    keep = ~torch.tensor(drop)
    return Tokens(tokens.hidden[keep[tokens.prompt]], tokens.ids[keep], tokens.scored[keep])


class Reader:
    """Reads prompts into the residual stream and its SAE codes."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: nn.Module, hookpoint: str, sae: SparseAutoencoder) -> None:
        self.tokenizer, self.encoder, self.hookpoint, self.sae = tokenizer, encoder, hookpoint, sae
        self.word_ends = word_ends(tokenizer)

    def tokens(self, prompts: list[str], *, batch: int = 256) -> Tokens:
        """The scored positions of `prompts`."""
        encoded = tokenize(self.tokenizer, prompts)
        parts = [
            read_hookpoint(self.encoder, self.hookpoint, encoded.input_ids[i : i + batch])[
                encoded.scored[i : i + batch]
            ]
            for i in range(0, len(prompts), batch)
        ]
        return Tokens(torch.cat(parts), encoded.input_ids, encoded.scored)

    def codes(self, hidden: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., F) by threshold alone, so that each latent decides for itself (with TopK the threshold is 0)."""
        keep = slice(None) if features is None else features
        sae = self.sae
        return jump_codes(hidden, sae.W_enc[:, keep], sae.b_enc[keep], sae.b_dec, sae.threshold[keep])

    def firing(self, hidden: torch.Tensor, *, batch: int = 4096) -> torch.Tensor:
        """How often each latent fires at these tokens (T, D): (F,)."""
        counts = [(self.codes(hidden[i : i + batch]) > 0).sum(0) for i in range(0, len(hidden), batch)]
        return torch.stack(counts).sum(0) / len(hidden)

    def last_tokens(self, ids: torch.Tensor, spoken: list[str]) -> torch.Tensor:
        """(P, L) bool: where the name as each prompt spells it ends; ids are (P, L)."""
        patterns = {name: self.tokenizer(name, add_special_tokens=False).input_ids for name in set(spoken)}
        return torch.cat([find_tokens(row[None], patterns[name]) for row, name in zip(ids, spoken, strict=True)])


class Codes(Protocol):
    """SAE codes of some tokens, T of them, however they are kept."""

    def __len__(self) -> int:
        """T."""
        ...

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, (F,)."""
        ...

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """The codes of some features, (T, S)."""
        ...

    def scores(self, features: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each token's score, (T,)."""
        ...

    def take(self, rows: torch.Tensor) -> Self:
        """Some of the tokens."""
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """These tokens and then those of `others`."""
        ...


class HiddenCodes:
    """Codes that are computed anew from the residual stream whenever they are asked for."""

    def __init__(self, reader: Reader, hidden: torch.Tensor) -> None:
        self.reader, self.hidden = reader, hidden

    def __len__(self) -> int:
        return len(self.hidden)

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, (F,)."""
        return self.reader.firing(self.hidden)

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """The codes of some features, (T, S)."""
        return self.reader.codes(self.hidden, features)

    def scores(self, features: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each token's score, (T,)."""
        return position_scores(self.columns(features), weights, bias)

    def take(self, rows: torch.Tensor) -> HiddenCodes:
        """Some of the tokens."""
        return HiddenCodes(self.reader, self.hidden[rows])

    def join(self, others: Sequence[HiddenCodes]) -> HiddenCodes:
        """These tokens and then those of `others`."""
        return HiddenCodes(self.reader, torch.cat([self.hidden, *(other.hidden for other in others)]))
