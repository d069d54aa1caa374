"""LoRA adapters in the form that `pipe.load_lora_weights` reads, and how several act on one U-Net at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch.nn.utils import parametrize

from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError, UserError
from components.common.files import VERSION, new_folder, read_sidecar, write_sidecar
from components.diffusion.folder import LOADING, TEXT_PARTS, check_made_for, part_digests

FORMAT = "expunge/adapter"
NO_ADAPTER = "expunge/no-adapter"
"""The format of a folder for a request without the channel `guidance`: a sidecar and nothing else."""
WEIGHTS = "pytorch_lora_weights.safetensors"
MADE_FOR = (*TEXT_PARTS, "scheduler", "unet")
"""The parts of the base that an adapter is made for."""
LAYERS = ("attn2.to_k", "attn2.to_v")
"""Keys and values of cross-attention, the only layers that read the prompt: an adapter of them is a linear map of its states."""
_PREFIX = "unet."
_FAINT = 1e-2  # singular values of the empty prompt's states below this part of the largest do not count


def attach(
    unet: UNet2DConditionModel, name: str, *, rank: int, seed: int = 0, layers: tuple[str, ...] = LAYERS
) -> list[torch.nn.Parameter]:
    """Adds the adapter `name`, which changes nothing yet, and returns its parameters; the base stays frozen.

    `layers` are endings of module names; `seed` draws A, while B is 0.
    """
    modules = [path for path, _ in unet.named_modules() if path.endswith(layers)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # PEFT draws its initial weights from the global stream
        with LOADING:
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=modules), adapter_name=name)
    return parameters_of(unet, name)


def parameters_of(unet: UNet2DConditionModel, name: str) -> list[torch.nn.Parameter]:
    """The parameters of the adapter `name`."""
    return [p for path, p in unet.named_parameters() if f".{name}." in path]


def adapted_layers(unet: UNet2DConditionModel, name: str) -> list[torch.nn.Module]:
    """The keys and values of cross-attention that the adapter `name` changes, in the order of the U-Net's modules."""
    layers: list[torch.nn.Module] = [module for path, module in unet.named_modules() if path.endswith(LAYERS)]
    found = [layer for layer in layers if any(path == f"lora_A.{name}" for path, _ in layer.named_modules())]
    assert found, f"no adapter {name} reads the prompt"
    return found


def empty_directions(uncond: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis (r, D) of the main directions of the empty prompt's hidden states (1, L, D).

    What is orthogonal to it is the null space that `hold: null-space` trains in. Directions in which these states hardly
    differ from 0 are left out: they distinguish positions of padding, and carry half the length of any other prompt's states.
    """
    _, spread, rows = torch.linalg.svd(uncond[0].double(), full_matrices=False)
    return rows[spread > _FAINT * spread[0]].float()


class Axes(torch.nn.Module):
    """The parametrization A = Ã Q with orthonormal rows Q (E, D)."""

    rows: torch.Tensor
    """Q."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, inner: torch.Tensor) -> torch.Tensor:
        """Ã (r, E) to A (r, D)."""
        return inner @ self.rows

    def right_inverse(self, down: torch.Tensor) -> torch.Tensor:
        """A (r, D) to Ã: the part of A that lies in the span of Q."""
        return down @ self.rows.T


def parametrize_in_axes(unet: UNet2DConditionModel, name: str, axes: torch.Tensor) -> Axes:
    """Restricts what the adapter `name` reads of hidden states to `axes`: A = Ã Q, and Ã is trained, until it is written.

    Q is `axes` (E, D), orthonormal, as `principal_axes` of closed_form.py makes it; returned is the one module that all
    layers share. If Q is orthogonal to `empty_directions`, keys and values of the empty prompt are nearly the base's, and the
    unconditional output hardly moves at any timestep, for a sum of adapters either. SPEED (arXiv 2503.07392) protects null
    tokens in closed form by the same means.
    """
    downs = [layer.get_submodule(f"lora_A.{name}") for layer in adapted_layers(unet, name)]
    like = downs[0].get_parameter("weight")
    shared = Axes(axes.to(device=like.device, dtype=like.dtype))
    for down in downs:
        parametrize.register_parametrization(down, "weight", shared)
    return shared


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

    The file, and the U-Net from then on, have A itself, not Ã of `parametrize_in_axes`.
    """
    for layer in adapted_layers(unet, name):
        down = layer.get_submodule(f"lora_A.{name}")
        if parametrize.is_parametrized(down):
            parametrize.remove_parametrizations(down, "weight")
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=name))
    tensors = {_PREFIX + key: value for key, value in state.items()}
    facts = {"parameters": sum(tensor.numel() for tensor in tensors.values()), **facts}
    with new_folder(folder) as partial:
        fill_artifact(partial, kind=FORMAT, tensors=tensors, params=params, inputs=inputs, facts=facts, weights=WEIGHTS)


def write_no_adapter(folder: Path) -> None:
    """Writes the folder of a request that has no channel `guidance`: a sidecar that says so."""
    with new_folder(folder) as partial:
        write_sidecar(partial, {"format": NO_ADAPTER, "version": VERSION})


def has_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter rather than the note that its request has none; `ArtifactError` for anything else."""
    try:
        read_sidecar(folder, NO_ADAPTER)
    except ArtifactError:
        read_sidecar(folder, FORMAT)
        return True
    return False


def check_adapters(folders: Mapping[str, Path], base: Path) -> None:
    """`ArtifactError` for an adapter that is missing, or that was trained on another model than the one in folder `base`."""
    for name, folder in folders.items():
        _refuse_none(name, folder)
    here = part_digests(base, MADE_FOR) if folders else {}
    for name, folder in folders.items():
        check_made_for(read_sidecar(folder, FORMAT)["inputs"], here, f"the adapter {name}", base)


def load_adapters(pipe: StableDiffusionPipeline, folders: Mapping[str, Path]) -> None:
    """Loads adapters by name and leaves them switched off; `ArtifactError` for one that is missing or altered.

    A LoRA that the user loaded before stays as it is.
    """
    foreign = active_adapters(pipe.unet)
    for name, folder in folders.items():
        _refuse_none(name, folder)
        tensors, _ = read_artifact(folder, FORMAT)
        if name in getattr(pipe.unet, "peft_config", {}):  # of an eraser before this one
            pipe.unet.delete_adapters(name)
        with LOADING:
            pipe.load_lora_weights(dict(tensors), adapter_name=name)
    if folders:
        _only(pipe.unet, foreign)


def _refuse_none(name: str, folder: Path) -> None:
    if not has_adapter(folder):
        raise ArtifactError(
            f"{name} has no adapter, for its request has no channel guidance",
            "add the channel, or leave the request out",
        )


@contextmanager
def use_adapters(pipe: StableDiffusionPipeline, names: Iterable[str]) -> Iterator[None]:
    """Within the block the U-Net draws with the named adapters, summed, beside those that were active; after it with these alone."""
    wanted, before = list(names), active_adapters(pipe.unet)
    check_loaded(pipe.unet, wanted)
    if wanted:
        _only(pipe.unet, [*before, *wanted])
    try:
        yield
    finally:
        if wanted:
            _only(pipe.unet, before)


def check_loaded(unet: UNet2DConditionModel, names: Iterable[str]) -> None:
    """`UserError` unless the named adapters are in the U-Net at their full weight, and no LoRA is fused into their layers."""
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    for name in names:
        own = [layer for layer in layers if name in layer.lora_A]
        if not own:
            raise UserError(f"the adapter {name} was taken out of the U-Net", "open pipeline and eraser again")
        if any(layer.merged for layer in own):
            raise UserError(
                f"a LoRA is fused into the layers of the adapter {name}, which cannot act in them",
                "unfuse it (pipe.unfuse_lora()), or fuse and unload it before the eraser is opened",
            )
        weights = {layer.scaling[name] for layer in own if not isinstance(layer.scaling[name], torch.Tensor)}
        if weights - {1.0}:
            raise UserError(
                f"the adapter {name} was given the weight {min(weights):g}, and it erases at 1",
                "weigh LoRAs of your own alone: pipe.set_adapters",
            )


def active_adapters(unet: UNet2DConditionModel) -> list[str]:
    """The adapters that act on every pass."""
    layers = [module for module in unet.modules() if isinstance(module, LoraLayer)]
    named = getattr(unet, "peft_config", None)  # a U-Net keeps its layers when its last adapter is deleted
    return unet.active_adapters() if named and layers and not layers[0].disable_adapters else []


def _only(unet: UNet2DConditionModel, names: list[str]) -> None:
    """Lets these adapters act and no others."""
    if names:
        unet.set_adapter(names)  # `set_adapters` assumes as many layers at every level
        unet.enable_adapters()
    else:
        unet.disable_adapters()
