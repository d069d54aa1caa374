"""A drop-in for `pipe.text_encoder` that replaces requested concepts and leaves every other prompt bit-identical.

B prompts, L token positions, D = d_in, R requests
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from components.diffusion import content_mask, rewrite_hookpoint
from components.features import RequestFilter
from components.filter.edit import codes, edit, score, spelt


class Detection(NamedTuple):
    """What the filter saw in the last prompts that it encoded."""

    scores: torch.Tensor
    """(B, R), in the order of `FilteredTextEncoder.requests`."""
    flagged: torch.Tensor
    """(B, R) bool."""


class FilteredTextEncoder(nn.Module):
    """The stock encoder with the filters of some requests at its hookpoint.

    `detection` holds what was seen last, and `calls` counts forwards, so that a harness can assert that it ran.
    The unconditional and negative prompts belong to `stock` (invariant 4): `install` sees to it in a stock pipeline.
    """

    def __init__(self, stock: nn.Module, filters: Mapping[str, RequestFilter], hookpoint: str) -> None:
        super().__init__()
        self.stock, self.filters, self.hookpoint = stock, dict(filters), hookpoint
        self.requests = tuple(filters)
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

    def detect(self, hidden: torch.Tensor, input_ids: torch.Tensor, scored: torch.Tensor) -> Detection:
        """Scores and decisions for a residual stream (B, L, D), its tokens and its scored positions (B, L)."""
        scores = [score(codes(hidden, item), spelt(input_ids, item), scored, item) for item in self.filters.values()]
        if not scores:
            empty = hidden.new_zeros(len(hidden), 0)
            return Detection(empty, empty.bool())
        limits = torch.stack([item.threshold for item in self.filters.values()])
        stacked = torch.stack(scores, 1)  # (B, R)
        return Detection(stacked, stacked >= limits)

    def rewrite(self, hidden: torch.Tensor, input_ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """The residual stream after every flagged request has been replaced; other rows are returned as they are."""
        self.detection = self.detect(hidden, input_ids, scored)
        out = hidden
        for column, item in enumerate(self.filters.values()):
            new = edit(out, codes(hidden, item), spelt(input_ids, item), scored, item)
            out = torch.where(self.detection.flagged[:, column, None, None], new, out)
        return out

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """As the stock encoder's forward."""
        self.calls += 1
        scored = content_mask(input_ids, self.eos_token_id)
        with rewrite_hookpoint(self.stock, self.hookpoint, lambda hidden: self.rewrite(hidden, input_ids, scored)):
            return self.stock(input_ids, attention_mask=attention_mask, **kwargs)
