"""Prompts to tokens, as the stock pipeline does it: always the full length, padded as the tokenizer pads.

B prompts, L token positions (the tokenizer's full length)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from components.diffusion.trie import ANY, WORD_END


class Matched(NamedTuple):
    """Tokens of a further tower, and which of its positions correspond to the first tower's."""

    input_ids: torch.Tensor
    """(B, L) int64."""
    forth: torch.Tensor
    """(B, L) int64: for each position of the first tower the one here."""
    back: torch.Tensor
    """(B, L) int64: for each position here the one of the first tower."""


class Encoded(NamedTuple):
    """Tokens of some prompts and which positions are scored."""

    input_ids: torch.Tensor
    """(B, L) int64, of the first tower."""
    scored: torch.Tensor
    """(B, L) bool: content tokens and the EOS that ends them; never BOS, never padding."""
    others: tuple[Matched, ...] = ()
    """The tokens of further towers (SDXL)."""

    def all_ids(self) -> list[torch.Tensor]:
        """The tokens of every tower, (B, L) each."""
        return [self.input_ids, *(other.input_ids for other in self.others)]

    def rows(self, index: torch.Tensor | slice, length: int | None = None) -> Encoded:
        """Some prompts; with `length` only as many positions of the first tower, and those of the others that correspond."""
        ids, scored, others = self.input_ids[index, :length], self.scored[index, :length], []
        for other in self.others:
            forth = other.forth[index, :length]
            reach = int(forth[scored].max()) + 1 if length is not None else None
            back = other.back[index, :reach].clamp(max=ids.shape[1] - 1)
            others.append(Matched(other.input_ids[index, :reach], forth.clamp(max=back.shape[1] - 1), back))
        return Encoded(ids, scored, tuple(others))


def content_mask(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """(B, L) bool: positions that are scored, from position 1 to the EOS that ends the prompt.

    That EOS is the first of the last run of them, whatever pads the row after it. An EOS before it is one that somebody typed:
    the U-Net reads on behind it, and so does the filter. The mask is a function of each row alone, so that a prompt's
    decision cannot depend on its batch (invariant 2).
    """
    is_eos = input_ids == eos_token_id
    ahead = is_eos.int().flip(1).cumsum(1).flip(1)  # EOS tokens from each position on
    content = ~is_eos & ((ahead > 0) | (ahead[:, :1] == 0))  # not what pads the row after its EOS
    behind = content.int().flip(1).cumsum(1).flip(1)  # content from each position on
    mask = content | (behind > 0)
    mask = mask | torch.cat([mask[:, :1], mask[:, :-1]], 1)  # and the EOS after it
    mask[:, 0] = False  # BOS is the same for every prompt, and an outlier
    return mask


class Tokens(NamedTuple):
    """One prompt's tokens, as many as fit, BOS and EOS among them and without padding."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """The characters (start, end) of each token."""


def tokens_of(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> list[Tokens]:
    """The tokens of each prompt; longer prompts are cut, as the stock pipeline cuts them.

    A call of a transformers tokenizer first sets padding and truncation on its one backend and then encodes, so that two threads
    (a pipeline beside an eraser, say) get each other's. This asks a copy that nobody sets anything on.
    """
    length, left = tokenizer.model_max_length, tokenizer.truncation_side == "left"
    found = []
    for encoding in _backend(tokenizer).encode_batch(list(prompts)):
        ids, spans = encoding.ids, encoding.offsets
        if len(ids) > length:
            ids, spans = (row[:1] + row[1 - length :] if left else row[: length - 1] + row[-1:] for row in (ids, spans))
        found.append(Tokens(ids, spans))
    return found


_BACKENDS: WeakKeyDictionary[CLIPTokenizer, tuple[int, Tokenizer]] = WeakKeyDictionary()


def _backend(tokenizer: CLIPTokenizer) -> Tokenizer:
    """The tokenizer's own backend, copied once for each size of its vocabulary, which grows by learned tokens."""
    size = len(tokenizer)
    known = _BACKENDS.get(tokenizer)
    if known is None or known[0] != size:
        backend = deepcopy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        known = _BACKENDS[tokenizer] = size, backend
    return known[1]


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Encoded:
    """Tokens of `prompts` at the tokenizer's full length; longer prompts are cut, as the stock pipeline cuts them."""
    (eos, pad), length = special_tokens(tokenizer), tokenizer.model_max_length
    rows = [tokens.ids + [pad] * (length - len(tokens.ids)) for tokens in tokens_of(tokenizer, prompts)]
    ids = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
    return Encoded(ids, content_mask(ids, eos))


def special_tokens(tokenizer: CLIPTokenizer) -> tuple[int, int]:
    """(EOS, padding) as the tokenizer has them; the encoder's configuration may name others and is never asked."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert isinstance(eos, int)  # a CLIPTokenizer has both
    assert isinstance(pad, int)
    return eos, pad


def find_tokens(input_ids: torch.Tensor, pattern: Sequence[int]) -> torch.Tensor:
    """(B, L) bool: the last token of every occurrence of `pattern` in each row."""
    found = torch.zeros_like(input_ids, dtype=torch.bool)
    size = len(pattern)
    if 0 < size <= input_ids.shape[1]:
        windows = input_ids.unfold(1, size, 1)  # (B, L - size + 1, size)
        found[:, size - 1 :] = (windows == torch.tensor(pattern)).all(-1)
    return found


def spelling_patterns(tokenizer: CLIPTokenizer, names: Sequence[str], others: Sequence[str] = ()) -> torch.Tensor:
    """(M, W) int64: tokens of every name, its plurals, and other forms, to the right, after the end of a word and then anything."""
    spelt = [*(name + end for name in names for end in ("", "s", "es")), *others]
    forms = tokenizer(spelt, add_special_tokens=False).input_ids if spelt else []
    width = max(map(len, forms), default=0) + 1
    return torch.tensor([[ANY] * (width - 1 - len(ids)) + [WORD_END, *ids] for ids in forms]).reshape(len(forms), width)


def word_ends(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """(V,) bool: the tokens after which a new word begins, BOS among them."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return torch.tensor([token.endswith("</w>") or token in special for token in tokens])
