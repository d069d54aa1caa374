"""Which positions of a flagged prompt are edited, and how they differ.

    P prompts, L token positions

Positions before the target cannot see it (the encoder is causal) and are never edited. From there on a position is a
`target` token, a `later` word, the `eos` or `padding`.
"""

from __future__ import annotations

import torch

POSITION_CLASSES = ("target", "later", "eos", "padding")


def position_classes(fires: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Class index (P, L) of every position, or -1 where nothing is edited.

    `fires` (P, L) says where a feature of the request fires; `scored` (P, L) is content and the first EOS.
    """
    last = scored.shape[1] - 1 - scored.flip(1).int().argmax(1)  # (P,) position of EOS
    index = torch.arange(scored.shape[1], device=scored.device)
    eos = index[None] == last[:, None]
    content = scored & ~eos
    hit = fires & content
    started = hit.int().cumsum(1) > 0
    classes = torch.full_like(scored, -1, dtype=torch.int64)
    classes = torch.where(started & content, 1, classes)
    classes = torch.where(hit, 0, classes)
    seen = (fires & scored).any(1, keepdim=True)  # a prompt whose EOS alone fires is edited from its end on
    classes = torch.where(eos & seen, 2, classes)
    return torch.where((index[None] > last[:, None]) & seen, 3, classes)
