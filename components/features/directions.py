"""What the edit adds to replace the target: the mean difference between prompts about the anchor and about the target.

    P prompt pairs, L token positions, D = d_in, K = 4 position classes

Each class of positions (components/filter/positions.py) has a difference of its own.
"""

from __future__ import annotations

import torch

from components.filter.positions import POSITION_CLASSES


def replacement_directions(
    target: torch.Tensor,  # (P, L, D) hidden states of prompts about the target
    anchor: torch.Tensor,  # (P, L, D) of the same prompts about the anchor
    classes: torch.Tensor,  # (P, L) of the target prompts
    target_eos: torch.Tensor,  # (P,) position of EOS
    anchor_eos: torch.Tensor,  # (P,)
) -> torch.Tensor:
    """Mean difference (K, D) of each position class, over pairs of prompts of equal length."""
    same = target_eos == anchor_eos
    delta = (anchor - target)[same]
    where = classes[same]
    zero = target.new_zeros(target.shape[-1])
    return torch.stack(
        [delta[where == k].mean(0) if bool((where == k).any()) else zero for k in range(len(POSITION_CLASSES))]
    )
