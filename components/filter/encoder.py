"""The stock text encoder with filters at its hookpoint: flagged prompts are edited, all others stay bit-identical.

B prompts, L token positions, D = d_in, R requests
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from components.diffusion.encode import content_mask
from components.diffusion.hooks import rewrite_hookpoint
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
    """The stock encoder with the filters of some requests at its hookpoint.

    Every call returns its decision and none is remembered, so that several threads may encode at once, also on one stock
    encoder. The unconditional and negative prompts belong to `stock` (invariant 4).
    """

    def __init__(self, stock: nn.Module, filters: Mapping[str, RequestFilter], hookpoint: str) -> None:
        super().__init__()
        self.stock, self.hookpoint, self.requests = stock, hookpoint, tuple(filters)
        ends = max((item.word_ends for item in filters.values()), key=len, default=torch.zeros(0, dtype=torch.bool))
        self._placed = tuple(filters.values()), build_trie([item.spellings for item in filters.values()], ends)
        self._zeroes = [bool(item.gain) for item in filters.values()]
        self.eos_token_id = int(getattr(stock, "config").eos_token_id)  # noqa: B009 - nn.Module declares no config

    def _on(self, device: torch.device) -> tuple[tuple[RequestFilter, ...], Trie]:
        """Filters and trie on the device of the stock encoder, which a pipeline may move at any time."""
        items, trie = self._placed
        if trie.keys.device != device:
            self._placed = items, trie = tuple(moved(item, device) for item in items), moved(trie, device)
        return items, trie

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

    def run(
        self,
        input_ids: torch.Tensor,
        *,
        named: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 - as the stock encoder
    ) -> tuple[Any, Decision]:
        """(the stock encoder's outputs for tokens (B, L), decision); `named` as in `rewrite`, `kwargs` go to its forward."""
        scored = content_mask(input_ids, self.eos_token_id)
        decisions: list[Decision] = []

        def edit(hidden: torch.Tensor) -> torch.Tensor:
            out, decision = self.rewrite(hidden, input_ids, scored, named)
            decisions.append(decision)
            return out

        with rewrite_hookpoint(self.stock, self.hookpoint, edit):
            outputs = self.stock(input_ids, **kwargs)
        (decision,) = decisions
        return outputs, decision

    def encode(self, input_ids: torch.Tensor, named: torch.Tensor | None = None) -> tuple[torch.Tensor, Decision]:
        """(last hidden states (B, L, D), decision) of tokens (B, L); `named` as in `rewrite`."""
        outputs, decision = self.run(input_ids, named=named)
        return outputs[0], decision

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:  # noqa: ANN401 - as the stock encoder
        """The outputs of `run` without the decision, as the stock encoder's forward gives them."""
        return self.run(input_ids, **kwargs)[0]
