"""A drop-in for `pipe.text_encoder` that replaces requested concepts and leaves every other prompt bit-identical.

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
from components.filter.edit import codes, evidence, step
from components.filter.scores import prompt_scores

_Held = TypeVar("_Held", RequestFilter, Trie)


class Detection(NamedTuple):
    """What the filter saw in the last prompts that it encoded."""

    scores: torch.Tensor
    """(B, R), in the order of `FilteredTextEncoder.requests`."""
    flagged: torch.Tensor
    """(B, R) bool."""


def moved(item: _Held, device: torch.device) -> _Held:
    """`item` with its tensors on `device`."""
    return item._replace(**{k: v.to(device) for k, v in item._asdict().items() if isinstance(v, torch.Tensor)})


class FilteredTextEncoder(nn.Module):
    """The stock encoder with the filters of some requests at its hookpoint.

    `detection` holds what was seen last, and `calls` counts forwards, so that a harness can assert that it ran.
    The unconditional and negative prompts belong to `stock` (invariant 4): `install` sees to it in a stock pipeline.
    """

    def __init__(self, stock: nn.Module, filters: Mapping[str, RequestFilter], hookpoint: str) -> None:
        super().__init__()
        self.stock, self.filters, self.hookpoint = stock, dict(filters), hookpoint
        self.requests = tuple(filters)
        ends = max((item.word_ends for item in filters.values()), key=len, default=torch.zeros(0, dtype=torch.bool))
        self._trie = build_trie([item.spellings for item in filters.values()], ends)
        self._gains = {name: bool(item.gain) for name, item in filters.items()}
        self.config: Any = stock.config
        self.eos_token_id = int(self.config.eos_token_id)
        self.detection: Detection | None = None
        self.calls = 0

    @property
    def dtype(self) -> torch.dtype:
        """The stock encoder's, as diffusers asks for it."""
        return next(self.stock.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The stock encoder's, as diffusers asks for it."""
        return next(self.stock.parameters()).device

    def _follow(self, device: torch.device) -> None:
        """Puts the filters where the stock encoder is, which a pipeline moves about."""
        if self._trie.keys.device != device:
            self.filters = {name: moved(item, device) for name, item in self.filters.items()}
            self._trie = moved(self._trie, device)

    def rewrite(self, hidden: torch.Tensor, input_ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """The residual stream (B, L, D) with every flagged request replaced; rows that none flags are returned as they are.

        All requests look at the stream as it came, so that neither detection nor edit depends on their order. They compute
        in float32, whatever the encoder computes in.
        """
        if not self.filters:
            empty = hidden.new_zeros(len(hidden), 0)
            self.detection = Detection(empty, empty.bool())
            return hidden
        self._follow(hidden.device)
        stream = hidden.float()
        code = [codes(stream, item) for item in self.filters.values()]
        named = find_names(input_ids, self._trie).unbind(-1)
        seen = [evidence(z, n, item) for z, n, item in zip(code, named, self.filters.values(), strict=True)]
        scores = torch.stack([prompt_scores(each, scored) for each in seen], 1)  # (B, R)
        self.detection = Detection(scores, scores >= torch.stack([item.threshold for item in self.filters.values()]))
        out = stream
        for column, (name, item) in enumerate(self.filters.items()):
            new = out + step(code[column], seen[column], scored, item, gains=self._gains[name])
            out = torch.where(self.detection.flagged[:, column, None, None], new, out)
        return out.to(hidden.dtype)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """As the stock encoder's forward."""
        self.calls += 1
        scored = content_mask(input_ids, self.eos_token_id)
        with rewrite_hookpoint(self.stock, self.hookpoint, lambda hidden: self.rewrite(hidden, input_ids, scored)):
            return self.stock(input_ids, attention_mask=attention_mask, **kwargs)
