"""Sparse SAE codes of the tokens of many prompts: read once, then selected and scored for any number of requests.

P prompts, T tokens, F = d_sae, S selected features, N names of the target

A code has some 16 of 2,048 entries, so that 450,000 tokens take about 100 MiB, by token and by latent together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse

from components.features.reading import Reader, Tokens
from components.features.regression import Score
from components.features.word_index import WordIndex


class Store:
    """Codes of the scored positions of some prompts, and an index of the prompts' words."""

    def __init__(self, reader: Reader, texts: Sequence[str], tokens: Tokens) -> None:
        counts = tokens.scored.sum(1).numpy()
        self.by_token = _codes(reader, tokens.hidden)  # (T, F)
        self.by_latent = self.by_token.tocsc()
        self.d_sae = reader.sae.d_sae
        self.words = WordIndex(texts)
        self.starts = np.concatenate([[0], np.cumsum(counts)])  # (P + 1,)
        self.prompt = np.repeat(np.arange(len(counts)), counts)  # (T,)

    def __len__(self) -> int:
        """T."""
        return len(self.prompt)

    def scores(self, features: torch.Tensor, score: Score) -> np.ndarray:
        """Each token's score, (T,): what `position_scores` gives, from the entries that are not 0."""
        weights, bias = (part.astype(np.float32) for part in score)
        return best_name(self.by_latent[:, features.numpy()] @ weights.T + bias)

    def prompt_scores(self, features: torch.Tensor, score: Score) -> np.ndarray:
        """Each prompt's score, (P,): the largest of its tokens'."""
        return np.maximum.reduceat(self.scores(features, score), self.starts[:-1])

    def columns(self, rows: np.ndarray, features: torch.Tensor) -> sparse.csr_array:
        """The codes (T', S) of some features at some tokens."""
        chosen = self.by_token[rows]  # (T', F)
        column = np.full(self.d_sae, -1, dtype=np.int32)
        column[features.numpy()] = np.arange(len(features))
        columns = column[chosen.indices]
        keep = columns >= 0
        edges = np.concatenate([[0], np.cumsum(keep)])[chosen.indptr]
        return sparse.csr_array((chosen.data[keep], columns[keep], edges), shape=(len(rows), len(features)))

    def firing(self, rows: np.ndarray) -> np.ndarray:
        """How often each latent fires at some tokens, as a count, (F,)."""
        return np.bincount(self.by_token[rows].indices, minlength=self.d_sae)


class TokenSet:
    """Some tokens of one store or of several, as `fit_scores` asks for them; those of one store stand together."""

    def __init__(self, *parts: tuple[Store, np.ndarray]) -> None:
        """`parts`: stores and the rows of their tokens."""
        self.rows: dict[Store, np.ndarray] = {}
        for store, rows in parts:
            self.rows[store] = np.concatenate([self.rows[store], rows]) if store in self.rows else rows

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, as a share of them, (F,)."""
        counts = np.sum([store.firing(rows) for store, rows in self.rows.items()], 0)
        return torch.from_numpy((counts / max(1, len(self))).astype(np.float32))

    def columns(self, features: torch.Tensor) -> sparse.csr_array:
        """The codes of some features, (T, S)."""
        return sparse.csr_array(sparse.vstack([store.columns(rows, features) for store, rows in self.rows.items()]))

    def scores(self, features: torch.Tensor, score: Score) -> np.ndarray:
        """Each token's score, (T,)."""
        weights, bias = (part.astype(np.float32) for part in score)
        return np.concatenate(
            [
                store.scores(features, score)[rows]
                if len(rows) > len(store) // 4
                else best_name(store.columns(rows, features) @ weights.T + bias)
                for store, rows in self.rows.items()
            ]
        )

    def holds(self, others: TokenSet) -> np.ndarray:
        """(T,) bool: which of these tokens are those of `others`, where this set is `others` joined with more."""
        return np.concatenate(
            [np.arange(len(rows)) < len(others.rows.get(store, ())) for store, rows in self.rows.items()]
        )

    def take(self, which: np.ndarray) -> TokenSet:
        """Some of the tokens, by their index in this set, ascending."""
        starts = np.cumsum([0, *map(len, self.rows.values())])
        inside = [which[(which >= a) & (which < b)] - a for a, b in pairwise(starts)]
        return TokenSet(*((store, rows[some]) for (store, rows), some in zip(self.rows.items(), inside, strict=True)))

    def join(self, others: Sequence[TokenSet]) -> TokenSet:
        """These tokens and those of `others`."""
        return TokenSet(*(part for each in (self, *others) for part in each.rows.items()))


def best_name(scores: np.ndarray) -> np.ndarray:
    """The largest of each row of (T, N): (T,), a column at a time, which is faster than `max(1)`."""
    return np.maximum.reduce([scores[:, name] for name in range(scores.shape[1])])


def _codes(reader: Reader, hidden: torch.Tensor, *, batch: int = 512) -> sparse.csr_array:
    """Codes (T, F) of tokens (T, D) in the residual stream."""
    size = reader.sae.d_sae

    def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for part in hidden.split(batch):
            flat = reader.codes(part).numpy().ravel()
            places = np.flatnonzero(flat)
            edges = places.searchsorted(np.arange(len(part) + 1) * size)
            yield np.diff(edges), (places % size).astype(np.int32), flat[places]

    counts, latents, values = (np.concatenate(each) for each in zip(*entries(), strict=True))
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return sparse.csr_array((values, latents, edges), shape=(len(hidden), size))
