"""Keeps a U-Net from drawing what no eraser has read, whichever pipeline calls it.

A pipeline's parts are shared: `from_pipe`, AutoPipeline and other threads reach the same U-Net. So the U-Net itself is
guarded: a pass that nothing was read for, or whose prompts are in other states than those that were read, is refused.

P prompts, N rows of a U-Net batch: the prompts, or with classifier-free guidance the negative ones and then the prompts
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import nn

from components.common.errors import UserError
from components.diffusion.conditioning import Conditioning

_ATTRIBUTE = "_expunge_guard"


class Guard:
    """The one guard of a U-Net; a new one takes the place of the one before."""

    def __init__(self, unet: nn.Module) -> None:
        if (before := getattr(unet, _ATTRIBUTE, None)) is not None:
            before.remove()
        self._allowed: dict[int, Conditioning | None] = {}
        self.remove = unet.register_forward_pre_hook(self._check, with_kwargs=True).remove
        object.__setattr__(unet, _ATTRIBUTE, self)  # no module, and nothing to save
        object.__setattr__(unet, "save_pretrained", partial(_save, unet))

    @contextmanager
    def allow(self, cond: Conditioning | None) -> Iterator[None]:
        """Within the block this thread may draw prompts in these states, P rows, or anything at all with None."""
        thread, missing = get_ident(), object()
        before: Any = self._allowed.get(thread, missing)
        self._allowed[thread] = cond
        try:
            yield
        finally:
            if before is missing:
                del self._allowed[thread]
            else:
                self._allowed[thread] = before

    def _check(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() not in self._allowed:
            raise UserError(
                "this U-Net belongs to an eraser, and no prompt was read for this call",
                "draw inside `with eraser.acting(erased)`, erased = eraser.read([prompt])",
            )
        wanted = self._allowed[get_ident()]
        if wanted is None:
            return
        if (kwargs.get("cross_attention_kwargs") or {}).get("scale", 1.0) != 1.0:
            raise UserError(
                "cross_attention_kwargs has a scale, which would weigh the eraser's adapters too",
                "weigh a LoRA of your own by pipe.set_adapters",
            )
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        pooled = (kwargs.get("added_cond_kwargs") or {}).get("text_embeds")
        if not (_ends_in(states, wanted.states) and (wanted.pooled is None or _ends_in(pooled, wanted.pooled))):
            raise UserError(
                "the U-Net is given a prompt that this eraser did not read",
                "pass `**erased.for_pipeline()` and no prompt, and the images_per_prompt that was stated",
            )


def _save(unet: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - what save_pretrained takes
    """`save_pretrained` of a U-Net without adapters; `UserError` with some, whose layers would be written in a form that nothing opens."""
    if getattr(unet, "peft_config", None):
        raise UserError(
            "save_pretrained would write a U-Net with adapters in a form that nothing opens",
            "write the erased model: expunge export diffusers DIR",
        )
    type(unet).save_pretrained(unet, *args, **kwargs)


def _ends_in(given: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    """Whether the last P of N rows, N = P or 2 P, are `wanted`."""
    if given is None or len(given) not in (len(wanted), 2 * len(wanted)):
        return False
    last = given[-len(wanted) :]
    return last.shape == wanted.shape and bool((last == wanted.to(last.device, last.dtype)).all())
