"""Puts a filtering encoder into a stock pipeline so that `pipe(prompt, negative_prompt=…)` edits the prompt alone.

A pipeline encodes the unconditional or negative prompt with `pipe.text_encoder` too. Set as that and nothing more, a
filter would edit a negative prompt that names the target and so ask for the anchor's absence, and would leave the
detection of the negative prompt behind instead of the prompt's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from diffusers import StableDiffusionPipeline

from components.common.errors import UserError
from components.filter.encoder import Detection


class FilteringEncoder(Protocol):
    """What `FilteredTextEncoder` and `OnnxTextEncoder` have in common."""

    requests: tuple[str, ...]
    detection: Detection | None


def install(pipe: StableDiffusionPipeline, encoder: FilteringEncoder) -> Callable[[], None]:
    """Makes `encoder` the pipeline's and keeps unconditional and negative prompts stock; returns what undoes it.

    They go through the encoder that `encoder` wraps or, if it wraps none, the one that the pipeline had. With neither
    (the pipeline was opened with `encoder` or without any) they go through `encoder`, and one that it flags is refused
    with `UserError` rather than edited. `encoder.detection` is always that of the prompts.
    """
    before, previous = pipe.text_encoder, pipe.encode_prompt
    whole = partial(type(pipe).encode_prompt, pipe)  # not `previous`: a later filter takes an earlier one's place
    plain: Any = getattr(encoder, "stock", None) or getattr(before, "stock", before) or encoder

    def encode_prompt(
        prompt: str | list[str] | None,
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,  # noqa: FBT001 - diffusers' signature
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        **others: Any,  # noqa: ANN401 - lora_scale, clip_skip
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the pipeline's own, in two calls of it: first the prompts alone, then, given those, what is left."""
        encoder.detection = None
        states, _ = whole(prompt, device, num_images_per_prompt, False, prompt_embeds=prompt_embeds, **others)
        if not do_classifier_free_guidance:
            return states, negative_prompt_embeds
        seen, encoder.detection = encoder.detection, None
        pipe.text_encoder = plain
        try:
            _, negative = whole(
                prompt,
                plain.device,
                num_images_per_prompt,
                True,
                negative_prompt,
                prompt_embeds=states if prompt_embeds is None else prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                **others,
            )
            if encoder.detection is not None and encoder.detection.flagged.any():
                flags = zip(encoder.requests, encoder.detection.flagged.any(0).tolist(), strict=True)
                raise UserError(
                    f"the negative prompt {negative_prompt or ''!r} is flagged by {', '.join(n for n, on in flags if on)}",
                    "install the filter on a pipeline that has its own text encoder, which then encodes it unedited",
                )
        finally:
            pipe.text_encoder, encoder.detection = encoder, seen
        assert negative is not None  # classifier-free guidance asks for it
        return states, negative.to(states)

    def undo() -> None:
        pipe.text_encoder, pipe.encode_prompt = before, previous

    untyped: Any = pipe  # its methods are no attributes to be set, as a type checker sees it
    untyped.text_encoder, untyped.encode_prompt = encoder, encode_prompt
    return undo
