"""What can be known of a pipeline's folder without reading a weight; it refuses what the erasers do not support.

A folder may hold more weight files than loading reads: fp16 and non-EMA variants, `.bin` files. Digests are of the files
that are read, so that the others neither matter nor are ever opened.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

from safetensors import SafetensorError

from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest, key_of

FORMAT = "expunge/base"
_TEXT = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
_SECOND = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
_IMAGE = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
SUPPORTED = {"StableDiffusionPipeline": _TEXT | _IMAGE, "StableDiffusionXLPipeline": _TEXT | _SECOND | _IMAGE}
TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
IMAGE_PARTS = ("scheduler", "unet", "vae")
_WEIGHED = ("text_encoder", "text_encoder_2", "unet", "vae")
_VARIANTS = (None, "fp16", "bf16")
_HEADER = 100 * 2**20
_AGAIN = "download the model again"
_PREDICTIONS = ("epsilon", "v_prediction")
LOADING = RLock()
"""Held while models and adapters are opened. For that while diffusers, transformers and PEFT replace how every module in the process
gets its parameters, and two threads that do so at once leave all later modules without values."""


def check_folder(folder: Path) -> None:
    """Everything that can be known of a pipeline folder without reading a weight.

    `UserError` for a folder that is no pipeline or of an architecture that is not supported; `ArtifactError` for a
    component without weights, and, where the folder has a sidecar, for bytes that are not the ones it names.
    """
    named = read_index(folder)
    kind = str(named.get("_class_name") or "pipeline without a name")
    if kind not in SUPPORTED:
        raise UserError(f"{folder} is a {kind}, which is not supported", f"use a {' or '.join(SUPPORTED)}")
    for part, wanted in SUPPORTED[kind].items():
        found = _class_of(named.get(part))
        if not found:
            raise UserError(
                f"{folder} has no {part} (model_index.json names none)", "use a pipeline with all its parts"
            )
        if found.removesuffix("Fast") != wanted:
            raise UserError(f"{part} of {folder} is a {found}, which is not supported", f"use a {wanted}")
    _check_files(folder)
    _check_widths(folder)
    sidecar = folder / SIDECAR
    if sidecar.is_file():
        for name, wanted in json.loads(sidecar.read_text(encoding="utf-8"))["files"].items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path} is missing", "restore it: git checkout or dvc checkout")
            if digest(path) != wanted:
                raise ArtifactError(f"{path} was altered or cut short", "restore it: git checkout or dvc checkout")


def _check_files(folder: Path) -> None:
    """`ArtifactError` for a tokenizer without its vocabulary and for a weight file that is missing, cut short or another thing."""
    variant = variant_of(folder)
    for part in parts_of(folder):
        here = {path.name for path in (folder / part).glob("*")}
        if part.startswith("tokenizer") and not ("tokenizer.json" in here or {"vocab.json", "merges.txt"} <= here):
            raise ArtifactError(f"{folder / part} has no tokenizer.json, nor vocab.json and merges.txt", _AGAIN)
        for path in _weights(folder / part, variant) if part in _WEIGHED else ():
            if path.suffix == ".safetensors" and not is_whole(path):
                raise ArtifactError(f"{path} is no safetensors file, or was cut short", _AGAIN)


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says; a file that Git LFS or a download left unfinished is not."""
    header, size = read_header(path), path.stat().st_size
    ends = [spec["data_offsets"][1] for name, spec in header.items() if name != "__metadata__"]
    return size == 8 + _header_size(path) + max(ends, default=0)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, by name of the tensor; empty for a file that is none."""
    size = _header_size(path)
    with path.open("rb") as file:
        file.seek(8)
        try:
            content = json.loads(file.read(size)) if 0 < size <= _HEADER else {}
        except ValueError:
            content = {}
    return content if isinstance(content, dict) else {}


def _header_size(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(8)
    return struct.unpack("<Q", head)[0] if len(head) == 8 else 0


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """`ArtifactError` for whatever transformers and diffusers say of a model that they cannot open; other threads wait."""
    try:
        with LOADING:
            yield
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        said = " ".join(str(error).split()).split(". ")[0][:200]
        raise ArtifactError(f"{folder} cannot be opened ({said})", _AGAIN) from error


def _class_of(named: object) -> str:
    """The class of a part as model_index.json has it, `[library, class]`; empty where it says null, as for a part left out."""
    return str(named[1] or "") if isinstance(named, list) and len(named) == 2 else ""


def read_index(folder: Path) -> dict[str, Any]:
    """The pipeline's model_index.json; `UserError` for a folder without one."""
    index = folder / "model_index.json"
    if not index.is_file():
        part = _read_json(folder / "config.json").get("_class_name") if (folder / "config.json").is_file() else None
        fact = f"it is a single {part}" if part else "it has no model_index.json"
        raise UserError(f"{folder} is no diffusers pipeline ({fact})", "mend base.path in params.yaml")
    return _read_json(index)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} is missing", "restore it") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON", "restore it: git checkout") from error
    return content if isinstance(content, dict) else {}


def parts_of(folder: Path) -> tuple[str, ...]:
    """The names of the pipeline's parts that are loaded, each a folder."""
    named = read_index(folder)
    wanted = SUPPORTED.get(str(named.get("_class_name")), {})
    return tuple(part for part in (*TEXT_PARTS, *IMAGE_PARTS) if part in wanted or part == "scheduler")


def variant_of(folder: Path) -> str | None:
    """Which weight files loading reads: None the plain ones, otherwise `fp16` or `bf16`, where only those are there.

    `ArtifactError` if no variant is whole, in safetensors.
    """
    parts = [part for part in parts_of(folder) if part in _WEIGHED]
    missing: list[str] = []
    for variant in _VARIANTS:
        lacking = [part for part in parts if not _weights(folder / part, variant)]
        if not lacking:
            return variant
        missing = missing or lacking
    here = folder / missing[0]
    if any(here.glob("*.safetensors")):
        fact, remedy = (
            "lacks a file of its weights, or the variant that the other parts have",
            "download the model again",
        )
    elif any(path.suffix in (".bin", ".ckpt", ".pt") for path in here.glob("*")):
        fact, remedy = "holds pickles and no safetensors file", "save it as safetensors: pipe.save_pretrained(FOLDER)"
    else:
        fact, remedy = "holds no safetensors file", "restore its weights, as safetensors"
    raise ArtifactError(f"{here} {fact}", remedy)


def _weights(part: Path, variant: str | None) -> list[Path]:
    """The weight files of a part in a variant: one, or an index and its shards; empty if they are not all there."""
    for stem in ("model", "diffusion_pytorch_model"):
        dotted = f".{variant}" if variant else ""
        whole = part / f"{stem}{dotted}.safetensors"
        if whole.is_file():
            return [whole]
        index = part / f"{stem}.safetensors.index{dotted}.json"
        if index.is_file():
            shards = sorted({part / name for name in _read_json(index).get("weight_map", {}).values()})
            if shards and all(shard.is_file() for shard in shards):
                return [index, *shards]
    return []


def loaded_files(folder: Path, part: str) -> list[Path]:
    """The files of a part that loading reads: its configuration or vocabulary, and the weights of one variant."""
    plain = [
        path
        for path in (folder / part).glob("*")
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json")
    ]
    plain = [path for path in plain if ".safetensors.index." not in path.name and ".bin.index." not in path.name]
    weights = _weights(folder / part, variant_of(folder)) if part in _WEIGHED else []
    return sorted([*plain, *weights])


def plain_name(name: str) -> str:
    """The name of a weight file without its variant, under which `from_pretrained` finds it unasked; shards keep theirs."""
    for variant in filter(None, _VARIANTS):
        if name.endswith(f".{variant}.safetensors") and "-of-" not in name:
            return name.replace(f".{variant}.", ".")
    return name


def part_digests(folder: Path, parts: tuple[str, ...] = (*TEXT_PARTS, *IMAGE_PARTS)) -> dict[str, str]:
    """SHA-256 of each of `parts` that the pipeline has, over the files that loading reads; no sidecar is needed."""
    found = {}
    for part in parts:
        if part in parts_of(folder):
            whole = hashlib.sha256()
            for path in loaded_files(folder, part):
                whole.update(f"{path.relative_to(folder / part).as_posix()}\0{digest(path)}\n".encode())
            found[part] = whole.hexdigest()
    return found


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the pipeline that loading reads, by relative name."""
    files = [path for part in parts_of(folder) for path in loaded_files(folder, part)]
    return {p.relative_to(folder).as_posix(): digest(p) for p in sorted([*files, folder / "model_index.json"])}


def base_digest(folder: Path) -> str:
    """A short name for the pipeline's bytes that loading reads: equal files, equal name."""
    return key_of(folder_digests(folder))


def check_made_for(inputs: Mapping[str, str], here: Mapping[str, str], what: str, folder: Path) -> None:
    """`ArtifactError` unless `what`, whose sidecar names `inputs`, was made for these parts of the base, as `part_digests` has them."""
    for part, found in here.items():
        if inputs.get(part) != found:
            fact = "another" if part in inputs else "an unknown"
            raise ArtifactError(
                f"{what} was made for {fact} {part} than the one of {folder}", "make it again: dvc repro"
            )


def _check_widths(folder: Path) -> None:
    """`UserError` for a U-Net that does not read what the text encoders write, or predicts what is not supported."""
    named = [part for part in parts_of(folder) if part.startswith("text_encoder")]
    widths = [int(_read_json(folder / part / "config.json").get("hidden_size", 0)) for part in named]
    unet = _read_json(folder / "unet" / "config.json")
    cross = unet.get("cross_attention_dim")
    if cross != sum(widths):
        raise UserError(
            f"the U-Net of {folder} reads states of width {cross}, and its text encoders write {sum(widths)}",
            "use the parts of one model",
        )
    if unet.get("in_channels", 4) != unet.get("out_channels", 4):
        raise UserError(
            f"the U-Net of {folder} takes {unet['in_channels']} channels, as one for inpainting does",
            "use the text-to-image model that it was made from",
        )
    prediction = _read_json(folder / "scheduler" / "scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise UserError(f"{folder} predicts {prediction!r}, which is not supported", f"use {' or '.join(_PREDICTIONS)}")
