"""What a U-Net is told about a prompt: one tuple, whatever the architecture.

B prompts, L token positions, D hidden (of all text encoders together), E pooled, Z latent channels, h = w latent side
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Conditioning(NamedTuple):
    """Everything that a U-Net reads of B prompts."""

    states: torch.Tensor
    """(B, L, D) hidden states, which cross-attention reads."""
    pooled: torch.Tensor | None = None
    """(B, E) pooled output of SDXL's second encoder, which joins the time embedding; None for SD 1.x and 2.x."""
    time_ids: torch.Tensor | None = None
    """(B, 6) original height and width, crop's top and left, target height and width, pixels (SDXL); None otherwise."""

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """The same with `change` applied to each tensor."""
        return Conditioning(*(None if part is None else change(part) for part in self))  # pyright: ignore[reportArgumentType] - states is a tensor

    def rows(self, index: torch.Tensor | slice | Sequence[int]) -> Conditioning:
        """Some of the prompts."""
        return self.map(lambda part: part[index])

    def expand(self, count: int) -> Conditioning:
        """One prompt, `count` times."""
        return self.map(lambda part: part.expand(count, *part.shape[1:]))

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        return self.map(lambda part: part.to(device))

    def added(self) -> dict[str, torch.Tensor] | None:
        """What a U-Net of SDXL takes as `added_cond_kwargs`."""
        if self.pooled is None or self.time_ids is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": self.time_ids}


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Several conditionings of one architecture, one after another."""
    columns = zip(*parts, strict=True)
    return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # pyright: ignore[reportArgumentType] - states is a tensor


def denoise(unet: Any, x: torch.Tensor, timestep: torch.Tensor | int, cond: Conditioning) -> torch.Tensor:  # noqa: ANN401 - a UNet2DConditionModel, or accelerate's wrapper of one
    """What the U-Net says of latents x (B, Z, h, w) at `timestep`, in its own output space and dtype: (B, Z, h, w)."""
    return unet(x, timestep, cond.states, added_cond_kwargs=cond.added(), return_dict=False)[0]
