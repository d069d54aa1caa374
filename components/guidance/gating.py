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
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

from components.common.errors import UserError
from components.guidance.adapters import use_adapters


class Seen(Protocol):
    """What a filter says of the prompts that it saw last."""

    @property
    def flagged(self) -> torch.Tensor:
        """(B, R) bool, in the order of `Detects.requests`."""
        ...


class Detects(Protocol):
    """A filtering text encoder, in torch or on onnxruntime."""

    @property
    def requests(self) -> tuple[str, ...]:
        """Their ids."""
        ...

    @property
    def detection(self) -> Seen | None:
        """Of the last prompts; None before the first."""
        ...


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


def gate_by_detection(pipe: StableDiffusionPipeline, encoder: Detects) -> Callable[[], None]:
    """Makes `pipe` apply each request's adapter, loaded under the request's id, to the prompts that `encoder` flags for it.

    A loaded adapter of which `encoder` has no request acts on every prompt; none acts on the empty or negative prompt.
    Several images of a prompt follow one another, as diffusers arranges them. Returns what undoes it, and leaves all
    adapters off. `UserError` if `encoder` was not put into `pipe` by `install`, since what it saw last would then be the
    negative prompts, and in a call whose prompts it has not seen, such as one that is given embeddings.
    """
    if pipe.text_encoder is not encoder or "encode_prompt" not in vars(pipe):
        raise UserError("the filter is not installed in this pipeline", "call install(pipe, encoder) first")
    unet: Any = pipe.unet  # its forward is no attribute to be set, as a type checker sees it
    stock = getattr(unet.forward, "stock", unet.forward)  # a later gate takes an earlier one's place

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the U-Net's
        seen = encoder.detection
        prompts = len(sample) // (2 if pipe.do_classifier_free_guidance else 1)
        if seen is None or prompts % len(seen.flagged):
            raise UserError(
                f"the filter has not seen the {prompts} prompt(s) of this call, and adapters act where it flags",
                "pass prompts and not embeddings, or undo gate_by_detection",
            )
        loaded = getattr(unet, "peft_config", {})
        if loaded:  # diffusers switches on what it loads
            unet.disable_adapters()
        flagged = seen.flagged.cpu().repeat_interleave(prompts // len(seen.flagged), 0)  # (N or N/2, R)
        empty = torch.zeros(len(sample) - prompts, dtype=torch.bool)
        column = {name: flagged[:, i] for i, name in enumerate(encoder.requests)}
        everywhere = torch.ones(prompts, dtype=torch.bool)
        with gate_adapters(pipe, {name: torch.cat([empty, column.get(name, everywhere)]) for name in loaded}):
            return stock(sample, *args, **kwargs)

    def undo() -> None:
        unet.forward = stock

    untyped: Any = forward
    untyped.stock = stock
    unet.forward = forward
    return undo
