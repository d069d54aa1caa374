"""LoRA adapters in the form that `pipe.load_lora_weights` reads, and how several act on one U-Net at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch.nn.utils import parametrize

from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError, UserError
from components.common.files import digest, new_folder, read_sidecar

FORMAT = "expunge/adapter"
WEIGHTS = "pytorch_lora_weights.safetensors"
_PREFIX = "unet."
_FAINT = 1e-2  # singular values of the empty prompt's states below this part of the largest span directions left free
SUFFIXES = {
    "xattn-v": ("attn2.to_v",),
    "xattn-kv": ("attn2.to_k", "attn2.to_v"),
    "xattn": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
    "attn": tuple(f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")),
}


def target_modules(unet: UNet2DConditionModel, parameters: str) -> list[str]:
    """Names of the linear layers that get a LoRA; `UserError` if `parameters` selects none."""
    names = [n for n, _ in unet.named_modules() if n.endswith(SUFFIXES.get(parameters, ()) or ("\0",))]
    if not names:
        raise UserError(
            f"guidance.parameters={parameters!r} selects no module of the U-Net", f"use one of: {', '.join(SUFFIXES)}"
        )
    return names


def attach(unet: UNet2DConditionModel, name: str, *, parameters: str, rank: int, seed: int) -> list[torch.nn.Parameter]:
    """Adds a fresh adapter, which changes nothing yet, and returns its parameters; the base stays frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws its initial weights from the global stream
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=target_modules(unet, parameters)), adapter_name=name
        )
    return parameters_of(unet, name)


def parameters_of(unet: UNet2DConditionModel, name: str) -> list[torch.nn.Parameter]:
    """The parameters of the adapter `name`."""
    return [p for n, p in unet.named_parameters() if f".{name}." in n]


def readers(unet: UNet2DConditionModel, name: str) -> list[torch.nn.Module]:
    """The layers of the adapter `name` that read the prompt's hidden states: of its keys and values, those that it has."""
    layers: list[torch.nn.Module] = [m for path, m in unet.named_modules() if path.endswith(SUFFIXES["xattn-kv"])]
    found = [layer for layer in layers if any(path == f"lora_A.{name}" for path, _ in layer.named_modules())]
    assert found, f"no adapter {name} reads the prompt"
    return found


def empty_directions(uncond: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (r, D) of the directions that carry the hidden states (1, L, D) of the empty prompt.

    Directions in which these states hardly differ from 0 are not among them: they tell one position of padding from the
    next, and hold half of what any other prompt's states are long (docs/decisions/0011-what-carries-the-target.md).
    """
    _, spread, rows = torch.linalg.svd(uncond[0].double(), full_matrices=False)
    return rows[spread > _FAINT * spread[0]].float()


class _InAxes(torch.nn.Module):
    """A = Ã Q for orthonormal rows Q (E, D)."""

    axes: torch.Tensor

    def __init__(self, axes: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("axes", axes)

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        """Ã (r, E) to A (r, D)."""
        return inner @ self.axes

    def right_inverse(self, down: torch.Tensor) -> torch.Tensor:
        """A (r, D) to the Ã that it is made of, as far as Q reaches."""
        return down @ self.axes.T


def read_along(unet: UNet2DConditionModel, name: str, axes: torch.Tensor) -> None:
    """Until it is written, the adapter `name` reads a prompt's hidden states along `axes` alone: A = Ã Q, and Ã is trained.

    Q is `axes`, (E, D), orthonormal, as `principal_axes` of closed_form.py makes it. Where none of them is an empty direction,
    what is read of the empty prompt is nearly the base's, so that an adapter of keys and values, or of values alone, hardly
    moves the unconditional output at any timestep; nor does a sum of such adapters. SPEED (arXiv 2503.07392) holds the null
    tokens in closed form by the same means.
    """
    downs = [layer.get_submodule(f"lora_A.{name}") for layer in readers(unet, name)]
    like = downs[0].get_parameter("weight")
    shared = _InAxes(axes.to(device=like.device, dtype=like.dtype))
    for down in downs:
        parametrize.register_parametrization(down, "weight", shared)


def write_adapter(
    folder: Path,
    unet: UNet2DConditionModel,
    name: str,
    *,
    params: Mapping[str, object],
    inputs: Mapping[str, str],
    facts: Mapping[str, object],
) -> None:
    """Writes the adapter `name` of `unet`, whose training ends here; the old folder stays until the new one is whole.

    Of A = Ã Q (`read_along`) the file has A, and so has the U-Net from then on.
    """
    for layer in readers(unet, name):
        down = layer.get_submodule(f"lora_A.{name}")
        if parametrize.is_parametrized(down):
            parametrize.remove_parametrizations(down, "weight")
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=name))
    tensors = {_PREFIX + key: value for key, value in state.items()}
    facts = {"parameters": sum(tensor.numel() for tensor in tensors.values()), **facts}
    with new_folder(folder) as partial:
        fill_artifact(partial, kind=FORMAT, tensors=tensors, params=params, inputs=inputs, facts=facts, weights=WEIGHTS)


def check_adapters(folders: Mapping[str, Path], unet: Path) -> None:
    """`ArtifactError` for an adapter that is missing, or that was trained on another U-Net than the one in folder `unet`."""
    for name, folder in folders.items():
        trained_on = read_sidecar(folder, FORMAT)["inputs"].get("base")
        if trained_on != digest(unet):
            raise ArtifactError(
                f"the adapter {name} was trained on another U-Net than {unet}", "train it again: dvc repro"
            )


def load_adapters(pipe: StableDiffusionPipeline, folders: Mapping[str, Path]) -> None:
    """Loads adapters by name and leaves all of them switched off; `ArtifactError` for an altered one."""
    for name, folder in folders.items():
        tensors, _ = read_artifact(folder, FORMAT)
        pipe.load_lora_weights(dict(tensors), adapter_name=name)
    if folders:
        pipe.unet.disable_adapters()


@contextmanager
def use_adapters(pipe: StableDiffusionPipeline, names: Iterable[str]) -> Iterator[None]:
    """Within the block the U-Net draws with the named adapters, summed; after it with none."""
    wanted = list(names)
    if wanted:
        pipe.unet.set_adapter(wanted)  # `set_adapters` assumes as many layers at every level
        pipe.unet.enable_adapters()
    try:
        yield
    finally:
        if wanted:
            pipe.unet.disable_adapters()
