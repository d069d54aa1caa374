"""Hookpoints: modules of a text encoder, named by their path, whose output is the residual stream.

transformers 5 put CLIPTextModel's layers at the top, transformers 4 has them under `text_model`; both resolve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn

from components.common.errors import UserError

_REGISTERING = Lock()
"""Torch numbers hooks by a counter that it reads and then raises: two threads could get one number, and one of the hooks would be lost."""


def resolve_hookpoint(encoder: nn.Module, hookpoint: str) -> nn.Module:
    """The module of that path; `UserError` if the encoder has none."""
    root = getattr(encoder, "text_model", encoder)
    modules = dict(root.named_modules())
    if hookpoint not in modules or not hookpoint:
        layers = [n for n in modules if n.split(".")[-1].isdigit() and n.count(".") == 2]
        raise UserError(
            f"hookpoint {hookpoint!r} is not a module of {type(encoder).__name__}", f"use one of: {', '.join(layers)}"
        )
    return modules[hookpoint]


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: under accelerate's offloading not where its weights lie."""
    for part in module.modules() if hasattr(module, "_hf_hook") else ():
        device: Any = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


@contextmanager
def rewrite_hookpoint(
    encoder: nn.Module, hookpoint: str, rewrite: Callable[[torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Within the block, `rewrite` sees the hookpoint's output (B, L, D) and may return another in its place.

    It sees the forward passes of its own thread alone, so that several threads may use one encoder.
    """
    owner = get_ident()

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> object:
        if get_ident() != owner:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        new = rewrite(hidden)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    module = resolve_hookpoint(encoder, hookpoint)
    with _REGISTERING:
        handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _Enough(Exception):  # noqa: N818 - no error: it ends a forward pass whose rest nobody needs
    """Ends the pass of an encoder at the hookpoint."""


def read_hookpoint(
    encoder: nn.Module, hookpoint: str, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The residual stream (B, L, D) at `hookpoint` for tokens (B, L); the layers after it are not run.

    An encoder whose attention looks ahead, such as BERT, needs the mask (B, L) of what is not padding. An exporter, which
    counts the modules that it enters and leaves, is shown the whole pass.
    """
    mask = {} if attention_mask is None else {"attention_mask": attention_mask}
    reached: list[torch.Tensor] = []

    def leave(hidden: torch.Tensor) -> None:
        reached.append(hidden)
        if not torch.compiler.is_exporting():
            raise _Enough

    with rewrite_hookpoint(encoder, hookpoint, leave), suppress(_Enough):
        encoder(input_ids, **mask)
    if not reached:
        raise AssertionError(f"{hookpoint} is part of the encoder and was not reached")
    return reached[0]
