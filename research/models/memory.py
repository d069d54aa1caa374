"""Accelerator memory of the published architectures, traced on tensors without values: no GPU and no weights are needed.

    N rows of a U-Net batch

A pass is traced at two sizes, and the line through them is what components/cli/memory.py calculates with: bytes beside the
weights, a fixed part and a part for each row. Autocast is CUDA's: norms compute and answer in float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from components.cli.memory import TRACED, Line
from components.diffusion.inspect import Family
from components.guidance import recipe
from components.guidance.adapters import LAYERS
from research.reliability.show import Row

UNETS: dict[Family, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        "sample_size": 96, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024, "use_linear_projection": True, "upcast_attention": True,
    },
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
"""Configurations of the published U-Nets."""
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
SIZES = {"training": (8, 16), "frozen": (8, 16), "drawing": (2, 8), "decoding": (1, 4), "searching": (1, 4)}
"""Rows at which a pass is traced."""


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that are alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - the mode's protocol
        """Runs one operation and counts what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def know(self, tensors: Iterator[torch.Tensor]) -> None:
        """Leaves these tensors, such as weights, out of the count."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._seen[id(storage)] = weakref.ref(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if (seen := self._seen.get(key)) is not None and seen() is storage:
            return
        size = storage.nbytes()

        def free(_ref: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, free)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def whole_norms() -> Iterator[None]:
    """CUDA's rule under autocast: norms answer in float32."""
    before = nn.GroupNorm.forward, nn.LayerNorm.forward

    def whole(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda self, x: forward(self, x.float())

    nn.GroupNorm.forward, nn.LayerNorm.forward = map(whole, before)  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.GroupNorm.forward, nn.LayerNorm.forward = before  # type: ignore[method-assign]


class Adapted(nn.Module):
    """A linear layer with a LoRA, as PEFT computes it; PEFT itself cannot be built of tensors without values."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer says, and the LoRA's change."""
        return self.base(x) + self.up(self.down(x.to(self.down.weight.dtype)))


def add_adapter(unet: nn.Module, *, rank: int) -> None:
    """Puts a LoRA on keys and values of cross-attention."""
    for path, module in list(unet.named_modules()):
        if path.endswith(LAYERS) and isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(unet.get_submodule(parent), name, Adapted(module, rank))


def inputs_of(unet: Any, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:  # noqa: ANN401 - a U-Net, whose configuration is untyped
    """What the U-Net is asked for N rows."""
    config, side = unet.config, unet.config.sample_size
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(rows, pooled), "time_ids": torch.randn(rows, 6)}
    states = torch.randn(rows, 77, config.cross_attention_dim)
    x = torch.randn(rows, config.in_channels, side, side)
    return (x, torch.full((rows,), 500), states), {"added_cond_kwargs": added, "return_dict": False}


def training_bytes(unet: UNet2DConditionModel, rows: int, *, checkpointing: bool = True, bf16: bool = True) -> int:
    """Peak bytes beside weights, adapter, gradients and optimiser of one training step of N rows; the U-Net has an adapter."""
    unet.train(checkpointing)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    parameters = [p for p in unet.parameters() if p.requires_grad]
    args, kwargs = inputs_of(unet, rows)
    with whole_norms() if bf16 else nullcontext(), Live() as live:
        live.know(unet.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = unet(*args, **kwargs)[0]
        out.float().square().mean().backward()
        assert all(p.grad is not None for p in parameters)
        own = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    for parameter in parameters:
        parameter.grad = None
    return live.peak - own


def drawing_bytes(unet: UNet2DConditionModel, rows: int, *, bf16: bool = False) -> int:
    """Peak bytes beside the weights of one pass of N rows without a gradient."""
    unet.eval()
    args, kwargs = inputs_of(unet, rows)
    with whole_norms() if bf16 else nullcontext(), torch.no_grad(), Live() as live:
        live.know(unet.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            unet(*args, **kwargs)
    return live.peak


def decoding_bytes(vae: Any, side: int, images: int) -> int:  # noqa: ANN401 - an AutoencoderKL
    """Peak bytes beside the weights of decoding images whose latents have this side."""
    with torch.no_grad(), Live() as live:
        live.know(vae.parameters())
        vae.decode(torch.randn(images, 4, side, side), return_dict=False)
    return live.peak


def line(measure: Callable[[int], int], sizes: tuple[int, int], unit: int = 2**20) -> Line:
    """The line through the bytes at two sizes, in MiB or another unit."""
    few, many = sizes
    low, high = measure(few), measure(many)
    slope = (high - low) / (many - few)
    return Line(round((low - slope * few) / unit), round(slope / unit, 1))


def trace(family: Family) -> Mapping[str, Line]:
    """The lines of a published architecture, by kind of pass."""
    with FakeTensorMode():
        unet = UNet2DConditionModel(**UNETS[family]).requires_grad_(False)
        vae = AutoencoderKL(**VAE).requires_grad_(False).eval()
        drawing = line(lambda rows: drawing_bytes(unet, rows), SIZES["drawing"])
        frozen = line(lambda rows: drawing_bytes(unet, rows, bf16=True), SIZES["frozen"])
        decoding = line(lambda n: decoding_bytes(vae, UNETS[family]["sample_size"], n), SIZES["decoding"])
        add_adapter(unet, rank=16)
        training = line(lambda rows: training_bytes(unet, rows), SIZES["training"])
        unet.disable_gradient_checkpointing()
        searching = line(lambda rows: training_bytes(unet, rows, checkpointing=False, bf16=False), SIZES["searching"])
    return {"training": training, "frozen": frozen, "drawing": drawing, "decoding": decoding, "searching": searching}


def measure_memory(count: int, command: str) -> list[Row]:
    """Lines of components/cli/memory.py that are not those of a trace, more than 2 % apart at the shipped sizes."""
    rows = []
    for family in list(UNETS)[:count]:
        found = trace(family)
        wrong = []
        for name, each in found.items():
            here, there = (one.bytes(SIZES[name][1]) for one in (each, TRACED[family][name]))
            tqdm.write(
                f"{family} {name}: {each.fixed} MiB and {each.row} MiB a row; {here / 2**30:.2f} GiB at {SIZES[name][1]}"
            )
            wrong += [name] if abs(here - there) > 0.02 * here else []
        rows.append({
            "what": f"{family}: passes whose memory beside the weights is calculated more than 2 % off a trace of the published U-Net",
            "value": len(wrong), "n": len(found), "low": None, "high": None, "goal": "0", "met": not wrong, "command": command,
        })  # fmt: skip
    assert recipe.BATCH + recipe.RETAIN_BATCH in SIZES["training"]
    return rows
