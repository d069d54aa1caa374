"""Lets each adapter act on some rows of a U-Net batch and not on others.

    N rows of a U-Net batch: with classifier-free guidance the empty prompts, then the prompts

Adapters that are merely summed interfere: each moves every prompt a little, and ten of them together lose concepts that
nobody asked to erase. A row of scale 0 passes a LoRA layer as if the layer had none, so that the empty prompt, and any
prompt that no request flags, get the base's very output, however many requests there are. The cost: a prompt that the
filter misses is missed by the adapter too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

from components.guidance.adapters import use_adapters


@contextmanager
def gate_adapters(pipe: StableDiffusionPipeline, rows: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block each named adapter acts on the rows of a U-Net batch where its mask (N,) is True, summed where several do."""
    acting = {name: mask for name, mask in rows.items() if bool(mask.any())}
    with use_adapters(pipe, acting), _scaled(pipe.unet, acting):
        yield


@contextmanager
def _scaled(unet: UNet2DConditionModel, rows: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the block the scale of every LoRA layer, which takes (N, tokens, channels), is one for each row."""
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer, scale in zip(layers, before, strict=True):
        for name, mask in rows.items():
            if name in scale:
                weight: Any = layer.lora_A[name].weight  # a Tensor, which Module cannot say
                layer.scaling[name] = scale[name] * mask.to(weight.device, weight.dtype)[:, None, None]
    try:
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scaling.update(scale)
