"""The variants of a model that are drawn and measured; components/eraser.py says what each is."""

from __future__ import annotations

from typing import Literal, get_args

Variant = Literal["base", "filter", "guidance", "summed", "gated"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
DEFAULT: Variant = "gated"
