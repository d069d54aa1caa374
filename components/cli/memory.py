"""How much accelerator memory a project's parameters need, calculated before anything is loaded.

    N rows of a U-Net batch

Weights are counted in the files' headers, in float32 as they are opened; an adapter with its gradient and two moments follows from
the U-Net's layers. What a pass needs beside them was traced of the published architectures (`python -m research.models memory`)
and grows with the rows and with the area of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.diffusion.folder import read_header
from components.diffusion.inspect import PIPELINES, Family, Model, weight_files
from components.guidance import recipe

GIB = 2**30
LIMIT = 24 * GIB
"""What the presets may need."""
RESERVE = GIB
"""CUDA's context and the workspaces of cuDNN, which no trace sees."""
STATES = 4
"""Rows of a white-box attack's or a textual inversion's objective."""
RELEARNING = 8
"""Rows of a step of relearning, which trains every weight of a copy of the U-Net."""
READ = 256
"""Prompts that the text encoders read at once."""
BLOCK = 12
"""Tensors as wide as an encoder that one of its blocks has alive at most: the perceptron's two of four widths, stream and norms."""
SIDE: dict[Family, int] = {"sd15": 512, "sd21": 768, "sdxl": 1024}
"""Pixels of the images of the traced architectures."""


class Line(NamedTuple):
    """MiB beside the weights that a pass needs at most."""

    fixed: float
    row: float

    def bytes(self, rows: int, area: float = 1.0) -> int:
        """Of N rows, of images with so many times the traced area."""
        return int((self.fixed + self.row * rows * area) * 2**20)


TRACED: dict[Family, dict[str, Line]] = {
    "sd15": {
        "training": Line(203, 245.7), "frozen": Line(0, 67.5), "drawing": Line(0, 130.2), "decoding": Line(0, 768.1),
        "searching": Line(-3, 1455.8),
    },
    "sd21": {
        "training": Line(203, 464.4), "frozen": Line(0, 151.9), "drawing": Line(0, 292.8), "decoding": Line(0, 1728.3),
        "searching": Line(-4, 3089.7),
    },
    "sdxl": {
        "training": Line(115, 687.6), "frozen": Line(0, 200.0), "drawing": Line(0, 315.6), "decoding": Line(0, 3072.5),
        "searching": Line(-28, 9909.8),
    },
}  # fmt: skip
"""training: a step with checkpointing and bf16; frozen: a pass in bf16; drawing: a pass in float32; decoding: of N images;
searching: a pass in float32 with a gradient and without checkpointing."""


class Need(NamedTuple):
    """The memory that one piece of work takes."""

    what: str
    bytes: int
    lower: str
    """What to change where it is too much."""

    def sentence(self) -> str:
        """What it needs, and beyond the limit what to change."""
        needs = f"{self.what} needs {self.bytes / GIB:.1f} GiB of accelerator memory (calculated)"
        return needs if self.bytes <= LIMIT else f"{needs}, more than {LIMIT // GIB}: {self.lower}"


def shapes(part: Path) -> dict[str, list[int]]:
    """Shapes of a part's tensors by name, of the weight files that are opened."""
    content = [read_header(path) for path in weight_files(part)]
    return {name: spec["shape"] for header in content for name, spec in header.items() if name != "__metadata__"}


def weight_bytes(part: Path) -> int:
    """Bytes of a part's weights in float32."""
    return 4 * sum(math.prod(shape) for shape in shapes(part).values())


def adapter_bytes(unet: Path, rank: int) -> int:
    """Bytes of one adapter in training: weights, gradients and AdamW's two moments, in float32."""
    layers = [s for name, s in shapes(unet).items() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]
    return 4 * 4 * rank * sum(sum(shape) for shape in layers)


def reading_bytes(model: Model) -> int:
    """Bytes beside the weights of reading prompts, at most: SDXL's encoders keep the states of every layer."""
    kept = sum(
        width * (layers + 1 if len(model.widths) > 1 else 1)
        for width, layers in zip(model.widths, model.layers, strict=True)
    )
    return 4 * READ * 77 * (kept + BLOCK * max(model.widths))


def needs(model: Model, params: Mapping[str, Any]) -> list[Need]:
    """What each piece of work of a project needs, from its parameters as params.yaml has them."""
    encoders = PIPELINES["StableDiffusionXLPipeline" if model.family == "sdxl" else "StableDiffusionPipeline"]
    unet = weight_bytes(model.folder / "unet")
    held = RESERVE + unet + sum(weight_bytes(model.folder / part) for part in ("vae", *encoders))
    traced, area, guidance = TRACED[model.family], (model.side / SIDE[model.family]) ** 2, params["guidance"]
    found = [Need("reading prompts", held + reading_bytes(model), "use a larger GPU")]
    if guidance["steps"]:
        adapter = RESERVE + unet + adapter_bytes(model.folder / "unet", guidance["rank"])  # the rest makes room
        rows = recipe.BATCH + recipe.RETAIN_BATCH + (0 if guidance["hold"] == "null-space" else 3 * recipe.BATCH // 2)
        saves = guidance["gradient_checkpointing"] and guidance["precision"] == "bf16"
        step = traced["training"] if saves else traced["searching"]
        lower = (
            "use a larger GPU, or guidance.steps: 0"
            if saves
            else "set guidance.gradient_checkpointing: true and guidance.precision: bf16"
        )
        frozen = traced["frozen" if guidance["precision"] == "bf16" else "drawing"]
        batch = 2 * recipe.trajectory_batch(model.side // 8)
        found.append(
            Need("training an adapter", max(adapter + step.bytes(rows, area), held + frozen.bytes(batch, area)), lower)
        )
    for section in ("evaluate", "attack", "probe"):

        def drawing(batch: int) -> int:
            return held + max(traced["drawing"].bytes(2 * batch, area), traced["decoding"].bytes(batch, area))

        wanted = params[section]["batch"]
        found.append(Need(f"{section}.batch: {wanted}", drawing(wanted), _fitting(section, wanted, drawing)))
    search = held + traced["searching"].bytes(STATES, area)
    relearn = held + 4 * unet + traced["searching"].bytes(RELEARNING, area)
    for section, key, costly in (
        ("attack", "attacks", {"unlearn-diff-atk": search, "p4d": search}),
        ("probe", "probes", {"textual-inversion": search, "relearning": relearn}),
    ):
        chosen = params[section]["sizes"][params[section]["size"]][key]
        found += [
            Need(f"{name} of {section}", size, f"leave it out of {section}.sizes.{params[section]['size']}.{key}")
            for name, size in costly.items()
            if name in chosen
        ]
    return found


def _fitting(section: str, batch: int, size: Callable[[int], int]) -> str:
    """The batch to write instead."""
    fits = next((b for b in range(batch, 0, -1) if size(b) <= LIMIT), 0)
    return f"lower it to {fits}" if fits else f"{section} needs a larger GPU"
