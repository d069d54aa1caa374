"""What a user's model is, and what keeps Expunge from opening it: from names, configurations and headers, never from weights."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.common.errors import UserError
from components.diffusion.folder import check_folder, read_header

Family = Literal["sd15", "sd21", "sdxl"]
NAMES: dict[Family, str] = {
    "sd15": "Stable Diffusion 1.x",
    "sd21": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
}
PIPELINES = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
}
"""Pipelines that are supported, and their text encoders."""
_IMAGES = ("unet", "vae")
_AGAIN = "download the model again"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SINGLE: tuple[tuple[str, str], ...] = (
    ("joint_blocks.", "Stable Diffusion 3"), ("double_blocks.", "FLUX"),
    ("conditioner.embedders.1.", "StableDiffusionXLPipeline"), ("cond_stage_model.", "StableDiffusionPipeline"),
)  # fmt: skip
"""What the names of a single file's tensors say that it is."""


class Model(NamedTuple):
    """A pipeline folder."""

    folder: Path
    family: Family
    layers: tuple[int, ...]
    """Layers of each text encoder."""
    widths: tuple[int, ...]
    """Hidden width of each text encoder."""
    side: int
    """Side of its images, pixels."""
    prediction: str
    scheduler: str
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """What it is, as a user reads it."""
        encoders = ", ".join(f"{n} layers of width {w}" for n, w in zip(self.layers, self.widths, strict=True))
        return [
            f"{self.folder}: {NAMES[self.family]}, images of {self.side} × {self.side} pixels",
            f"text: {encoders}; U-Net predicts {self.prediction}; {self.scheduler}",
            *self.notes,
        ]


def inspect_base(named: str) -> Model:
    """The model that a path names; `UserError` says in one sentence what keeps it from being opened, and the way out."""
    path = Path(named)
    if not path.exists():
        first = named.partition("/")[0]
        if (
            named.count("/") == 1
            and first not in (".", "..", "~", "")
            and not Path(first).exists()
            and path.suffix != ".safetensors"
        ):
            local = Path("models") / named.partition("/")[2]
            raise UserError(
                f"{named} is no folder, but may be the name of a model on a hub",
                f'download it first: hf download {shlex.quote(named)} --local-dir {local} --exclude "*.bin" "*.ckpt"',
            )
        raise UserError(f"{named} does not exist", "name the folder of a diffusers pipeline")
    if path.is_file():
        raise _single_file(path)
    index = path / "model_index.json"
    if not index.is_file():
        raise _no_pipeline(path)
    kind = str(_read(index).get("_class_name") or "pipeline without a name")
    if kind not in PIPELINES:
        raise UserError(f"{path} is a {kind}, which is not supported", f"use a {' or '.join(PIPELINES)}")
    notes = tuple(note for part in (*PIPELINES[kind], *_IMAGES) if (note := _weights(path / part)))
    encoders, (unet, vae) = ([path / part / "config.json" for part in named] for named in (PIPELINES[kind], _IMAGES))
    layers, widths = (tuple(_number(c, key) for c in encoders) for key in ("num_hidden_layers", "hidden_size"))
    linear, cross = (_read(unet).get(key) for key in ("use_linear_projection", "cross_attention_dim"))
    scheduler = _read(path / "scheduler" / "scheduler_config.json")
    if cross != sum(widths):
        raise UserError(
            f"the U-Net of {path} reads states of width {cross}, its text encoders make {sum(widths)}",
            "put parts of one model together",
        )
    family: Family = "sdxl" if len(encoders) > 1 else "sd21" if linear else "sd15"
    levels = _read(vae).get("block_out_channels")
    if not isinstance(levels, list):
        raise UserError(f"{vae} has no list block_out_channels", _AGAIN)
    side = _number(unet, "sample_size") * 2 ** (len(levels) - 1)
    check_folder(path)
    return Model(
        path, family, layers, widths, side, str(scheduler.get("prediction_type", "epsilon")),
        str(scheduler.get("_class_name")), notes,
    )  # fmt: skip


def _weights(part: Path) -> str:
    """A note about a part's weight files, empty for plain ones; `UserError` where none can be opened."""
    found = sorted(part.glob("*.safetensors"))
    if not found:
        if any(path.suffix in _PICKLES for path in part.glob("*")):
            raise UserError(
                f"{part} holds pickles alone, which are not opened",
                "if you trust them, convert once: "
                + _python(
                    f"import diffusers as d; d.DiffusionPipeline.from_pretrained({_text(part.parent)}, "
                    f"use_safetensors=False).save_pretrained({_text(f'{part.parent}-safetensors')})"
                ),
            )
        raise UserError(f"{part} holds no weights", "download the model again, with its *.safetensors")
    if all("." not in path.stem for path in weight_files(part)):
        return ""
    return f"{part.name}: the {found[0].stem.split('.')[1]} variant alone is there; it is opened as float32"


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of a part that are opened: the plain ones, or those of a variant where there are no others."""
    found = sorted(part.glob("*.safetensors"))
    return [path for path in found if "." not in path.stem] or found


def _single_file(path: Path) -> UserError:
    """Why a file is not opened, and the command that makes a folder of it."""
    if path.suffix in _PICKLES:
        return UserError(f"{path} is a pickle, which is not opened", "get the model as safetensors")
    if path.suffix != ".safetensors":
        return UserError(f"{path} is no model", "name the folder of a diffusers pipeline")
    keys = read_header(path)
    kind = next((name for part, name in _SINGLE if any(part in key for key in keys)), None)
    if kind is None:
        return UserError(f"{path} is no whole model (its tensors are no pipeline's)", "name the folder of a pipeline")
    if kind not in PIPELINES:
        return UserError(f"{path} is a {kind} model, which is not supported", f"use a {' or '.join(PIPELINES)}")
    out = path.with_suffix("")
    return UserError(
        f"{path} is a model in a single file; Expunge opens folders",
        "convert it once: "
        + _python(
            f"from diffusers import {kind} as P; P.from_single_file({_text(path)}).save_pretrained({_text(out)})"
        ),
    )


def _python(code: str) -> str:
    """The command that runs `code`, for a shell."""
    return f"python -c {shlex.quote(code)}"


def _text(path: object) -> str:
    """A path as Python has it, in double quotes, whatever is in it."""
    return json.dumps(str(path), ensure_ascii=False)


def _no_pipeline(path: Path) -> UserError:
    if (path / "config.json").is_file() and (kind := _read(path / "config.json").get("_class_name")):
        return UserError(f"{path} is one part of a pipeline alone ({kind})", "name the folder that holds it")
    if any(p.suffix in _PICKLES for p in path.glob("*")):
        return UserError(f"{path} is a folder of pickles, which are not opened", "get the model as a diffusers folder")
    return UserError(f"{path} is no diffusers pipeline (it has no model_index.json)", "name the folder that has one")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} is missing", _AGAIN) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON", _AGAIN) from error
    return content if isinstance(content, dict) else {}


def _number(path: Path, key: str) -> int:
    """A whole number of a configuration; `UserError` for anything else, such as the two sides of a model for oblong images."""
    value = _read(path).get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path} has {key}: {json.dumps(value)}, not a number", "use a published model's configuration")
    return value
