"""The stock text encoders with filters at their hookpoints: flagged prompts are edited, all others stay bit-identical.

B prompts, L token positions, D = d_in (of all towers together), R requests
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from components.diffusion.conditioning import Conditioning
from components.diffusion.encode import Encoded
from components.diffusion.towers import Towers
from components.diffusion.trie import Trie, build_trie, find_names
from components.filter.artifact import RequestFilter
from components.filter.edit import codes, delta, evidence
from components.filter.scores import prompt_scores

_Tensors = TypeVar("_Tensors", RequestFilter, Trie)


class Decision(NamedTuple):
    """What the filters decided about B prompts."""

    requests: tuple[str, ...]
    """The R requests, one a column."""
    scores: torch.Tensor
    """(B, R)."""
    flagged: torch.Tensor
    """(B, R) bool."""


def moved(item: _Tensors, device: torch.device) -> _Tensors:
    """`item` with its tensors on `device`."""
    return item._replace(**{k: v.to(device) for k, v in item._asdict().items() if isinstance(v, torch.Tensor)})


class FilteredTextEncoder(nn.Module):
    """The stock encoders of a pipeline with the filters of some requests at their hookpoints.

    Every call returns its decision and none is remembered, so that several threads may encode at once, also on one stock
    encoder. The unconditional and negative prompts belong to the towers themselves (invariant 4).
    """

    def __init__(self, towers: Towers, filters: Mapping[str, RequestFilter]) -> None:
        super().__init__()
        self.towers, self.requests = towers, tuple(filters)
        self.stock = nn.ModuleList(tower.encoder for tower in towers.all)
        ends = max((item.word_ends for item in filters.values()), key=len, default=torch.zeros(0, dtype=torch.bool))
        self._placed = tuple(filters.values()), build_trie([item.spellings for item in filters.values()], ends)
        self._zeroes = [bool(item.gain) for item in filters.values()]

    def _on(self, device: torch.device) -> tuple[tuple[RequestFilter, ...], Trie]:
        """Filters and trie on the device of the stock encoder, which a pipeline may move at any time."""
        items, trie = self._placed
        if trie.keys.device != device:
            self._placed = items, trie = tuple(moved(item, device) for item in items), moved(trie, device)
        return items, trie

    def listed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L, R) bool: the listed names' tokens in tokens (B, L)."""
        return find_names(input_ids, self._on(input_ids.device)[1])

    def rewrite(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        scored: torch.Tensor,
        named: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Decision]:
        """(residual stream (B, L, D) with every flagged request replaced, decision); unflagged rows keep their bits.

        `named` (B, L, R) says at which tokens text has found a name (components/filter/text.py); without it the listed tokens do.

        All requests look at the stream as it came, so that neither detection nor edit depends on their order. They compute
        in float32, whatever the encoder computes in.
        """
        if not self.requests:
            none = hidden.new_zeros(len(hidden), 0)
            return hidden, Decision((), none, none.bool())
        items, trie = self._on(hidden.device)
        stream = hidden.float()
        code = [codes(stream, item) for item in items]
        listed = find_names(input_ids, trie) if named is None else named.to(hidden.device)
        seen = [evidence(z, n, item) for z, n, item in zip(code, listed.unbind(-1), items, strict=True)]
        scores = torch.stack([prompt_scores(each, scored) for each in seen], 1)  # (B, R)
        flagged = scores >= torch.stack([item.decision_threshold for item in items])
        out = stream
        for column, item in enumerate(items):
            new = out + delta(code[column], seen[column], scored, item, zeroes=self._zeroes[column])
            out = torch.where(flagged[:, column, None, None], new, out)
        return out.to(hidden.dtype), Decision(self.requests, scores, flagged)

    def encode(self, encoded: Encoded, named: torch.Tensor | None = None) -> tuple[Conditioning, Decision]:
        """(what the U-Net reads of the prompts, decision), both on the device of the first stock encoder; `named` as in `rewrite`."""
        decisions: list[Decision] = []

        def edit(hidden: torch.Tensor) -> torch.Tensor:
            ids, scored = encoded.input_ids.to(hidden.device), encoded.scored.to(hidden.device)
            out, decision = self.rewrite(hidden, ids, scored, named)
            decisions.append(decision)
            return out

        cond = self.towers.run(encoded, edit)
        (decision,) = decisions
        return cond, decision
