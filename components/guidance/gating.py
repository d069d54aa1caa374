"""Lets an adapter act on the prompts alone that its request's filter flags, each row of a batch by itself.

    B prompts, R requests, N rows of a U-Net batch: with classifier-free guidance the B empty prompts, then the B prompts

Adapters that are merely summed interfere: each moves every prompt a little, and ten of them together lose concepts that
nobody asked to erase (docs/decisions/0008). A row of scale 0 passes a LoRA layer as if the layer had none, so that the
empty prompt, and any prompt that no request flags, get the base's very output, however many requests there are. The cost:
a prompt that the filter misses is missed by the adapter too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

from components.common.errors import UserError
from components.filter import FilteringEncoder
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
                weight = layer.lora_A[name].weight
                layer.scaling[name] = scale[name] * mask.to(weight.device, weight.dtype)[:, None, None]
    try:
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scaling.update(scale)


def gate_by_detection(pipe: StableDiffusionPipeline, encoder: FilteringEncoder) -> Callable[[], None]:
    """Makes `pipe` apply each request's adapter, loaded under the request's id, to the prompts that `encoder` flags for it.

    `encoder` must be the pipeline's (`components.filter.install`), so that what it saw last are the prompts of this call;
    several images of a prompt follow one another, as diffusers arranges them. Adapters of other names stay off. Returns
    what undoes it; `UserError` in a call whose prompts `encoder` has not seen, such as one that is given embeddings.
    """
    unet: Any = pipe.unet  # its forward is no attribute to be set, as a type checker sees it
    stock = unet.forward

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the U-Net's
        seen = encoder.detection
        prompts = len(sample) // (2 if pipe.do_classifier_free_guidance else 1)
        if seen is None or prompts % len(seen.flagged):
            raise UserError(
                f"the filter has not seen the {prompts} prompt(s) of this call, and adapters act where it flags",
                "pass prompts and not embeddings, or undo gate_by_detection",
            )
        flagged = seen.flagged.repeat_interleave(prompts // len(seen.flagged), 0)  # (N or N/2, R)
        empty = flagged.new_zeros(len(sample) - prompts, flagged.shape[1])
        masks = torch.cat([empty, flagged])
        loaded = getattr(unet, "peft_config", {})
        rows = {name: masks[:, i] for i, name in enumerate(encoder.requests) if name in loaded}
        with gate_adapters(pipe, rows):
            return stock(sample, *args, **kwargs)

    def undo() -> None:
        unet.forward = stock

    unet.forward = forward
    return undo
