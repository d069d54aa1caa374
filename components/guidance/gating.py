"""Lets each adapter act on some prompts and not on others, row by row of a U-Net batch.

    P prompts, N rows of a U-Net batch: the prompts, or with classifier-free guidance the empty prompts and then the prompts

Adapters that are merely summed interfere: each moves every prompt a little, and ten of them together lose concepts that
nobody asked to erase. A row of scale 0 passes a LoRA layer as if the layer had none, so that the empty prompt, and any
prompt on which no adapter acts, get the base's very output, however many requests there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer

from components.common.errors import UserError
from components.diffusion.hooks import device_of
from components.guidance.adapters import check_loaded, use_adapters


@contextmanager
def gate_adapters(pipe: StableDiffusionPipeline, masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block each named adapter acts on the prompts where its mask (P,) is True, summed where several do.

    The U-Net may be asked for the P prompts alone, or with classifier-free guidance for P empty prompts and then the
    prompts; no adapter acts on the empty ones. `UserError` for a batch of any other size.
    """
    acting = {name: mask for name, mask in masks.items() if bool(mask.any())}
    check_loaded(pipe.unet, acting)
    layers = [module for module in pipe.unet.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]

    def scale(_unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401 - a forward hook's
        rows, device = len(args[0] if args else kwargs["sample"]), device_of(pipe.unet)
        for name, mask in acting.items():
            weight = _by_row(mask, rows)
            for layer, scales in zip(layers, before, strict=True):
                if name in scales:
                    like: Any = layer.lora_A[name].weight  # a Tensor, which Module cannot say
                    layer.scaling[name] = scales[name] * weight.to(device, like.dtype)[:, None, None]

    hook = pipe.unet.register_forward_pre_hook(scale, with_kwargs=True)
    try:
        with use_adapters(pipe, acting):
            yield
    finally:
        hook.remove()
        for layer, scales in zip(layers, before, strict=True):
            layer.scaling.update(scales)


def _by_row(mask: torch.Tensor, rows: int) -> torch.Tensor:
    """The mask (P,) of the prompts for each row (N,) of a U-Net batch."""
    if rows == len(mask):
        return mask
    if rows == 2 * len(mask):
        return torch.cat([torch.zeros_like(mask), mask])
    raise UserError(
        f"the U-Net is asked for {rows} rows, and adapters are gated for {len(mask)} prompt(s)",
        "draw the prompts that were read, with the images_per_prompt that was stated",
    )
