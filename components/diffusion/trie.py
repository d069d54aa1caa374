"""Finds the names of many requests in tokens at once, at a cost that hardly grows with how many names there are.

    B prompts, L token positions, V vocabulary, M patterns of W tokens, R requests, S states, T buckets of K slots

All patterns lie in one trie (Fredkin 1960), read backwards from a name's last token; its edges lie in a hash table. Every
position takes as many steps as the longest name has tokens, through all names together and by gathers alone, so that the
walk goes into an ONNX graph too. What grows is a bit a request at each position, and slowly the fullest bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

ANY, WORD_END = -1, -2
"""In a pattern: any token at all; a token that ends a word."""
_NOWHERE, _START = 0, 1
_SLACK = 2  # buckets an edge


class Trie(NamedTuple):
    """The names of R requests; an edge from state s by token t has the key s (V + 1) + t."""

    keys: torch.Tensor
    """(T, K) int64: the edges whose key falls into that bucket, -1 where there is none."""
    leads_to: torch.Tensor
    """(T, K) int64: the state at an edge's end."""
    names: torch.Tensor
    """(S, R) bool: the requests of which a name is complete there, if a word ends before it."""
    ends: torch.Tensor
    """(V + 1,) bool: the tokens that end a word; the last stands for what lies before the first token, and does."""
    depth: int
    """Tokens of the longest name."""


def build_trie(patterns: Sequence[torch.Tensor], ends: torch.Tensor) -> Trie:
    """The trie of R requests' patterns, each (M, W) as `spelling_patterns` has them; `ends` (V,) as `word_ends` has it."""
    edges: dict[tuple[int, int], int] = {}
    complete: list[tuple[int, int]] = []
    depth = 0
    for request, rows in enumerate(patterns):
        for row in rows.tolist():
            state, tokens = _START, [t for t in row if t not in (ANY, WORD_END)]
            for token in reversed(tokens):
                state = edges.setdefault((state, token), len(edges) + 2)
            complete.append((state, request))
            depth = max(depth, len(tokens))
    buckets: list[list[tuple[int, int]]] = [[] for _ in range(_SLACK * len(edges) + 1)]
    for (state, token), after in edges.items():
        key = state * (len(ends) + 1) + token
        buckets[key % len(buckets)].append((key, after))
    slots = max(map(len, buckets)) or 1
    filled = torch.tensor([bucket + [(-1, _NOWHERE)] * (slots - len(bucket)) for bucket in buckets])  # (T, K, 2)
    names = torch.zeros(len(edges) + 2, len(patterns), dtype=torch.bool)
    for state, request in complete:
        names[state, request] = True
    return Trie(filled[..., 0], filled[..., 1], names, F.pad(ends, (0, 1), value=True), depth)


def find_names(input_ids: torch.Tensor, trie: Trie) -> torch.Tensor:
    """(B, L, R) bool: the tokens of every name of each request in tokens (B, L), from its first to its last."""
    length, size = input_ids.shape[1], len(trie.ends)
    padded = F.pad(input_ids, (trie.depth, 0), value=size - 1)
    state = torch.full_like(input_ids, _START)
    ends: list[torch.Tensor] = []  # by length: where a name of so many tokens ends, (B, L, R)
    for back in range(trie.depth):
        first = trie.depth - back
        key = state * size + padded[:, first : first + length]
        bucket = key % len(trie.keys)
        state = torch.where(trie.keys[bucket] == key[..., None], trie.leads_to[bucket], _NOWHERE).sum(-1)
        begins = trie.ends[padded[:, first - 1 : first - 1 + length]]  # (B, L): a word ends before
        ends.append(trie.names[state] & begins[..., None])
    found = reach = trie.names[torch.zeros_like(input_ids)]  # none
    for ahead in range(trie.depth - 1, -1, -1):
        reach = reach | ends[ahead]  # a name of more than `ahead` tokens ends here
        found = found | F.pad(reach[:, ahead:], (0, 0, 0, ahead))
    return found
