"""What readers of judges share: images of another size, thresholds as probabilities, and files that must be there.

N images, H and W pixels
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from components.common.errors import ArtifactError, UserError
from components.common.files import digest as digest_of
from components.common.files import key_of
from components.common.images import read_image
from components.worlds.params import ReaderParams

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_files(params: ReaderParams) -> None:
    """`UserError` for a file of a judge that is missing."""
    for path in params.files():
        if not path.exists():
            raise UserError(
                f"the judge {params.reader} reads {path}, which does not exist", "mend judge in params.yaml"
            )


def pin(params: ReaderParams, **more: object) -> str:
    """The digest of a judge: its files, its threshold and what else it decides by."""
    check_files(params)
    files = {str(number): digest_of(path) for number, path in enumerate(params.files())}
    return key_of(files | {"threshold": str(params.threshold)} | {k: repr(v) for k, v in more.items()})


def model_folder(params: ReaderParams) -> Path:
    """The folder of a transformers model with safetensors weights; `UserError` for anything else."""
    folder = params.path
    check_files(params)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no transformers model (it has no config.json)", "mend judge in params.yaml")
    if not any(folder.glob("*.safetensors")):
        pickled = any(path.suffix in _PICKLES for path in folder.iterdir())
        raise UserError(
            f"{folder} holds no safetensors file" + (", and pickles are not opened" if pickled else ""),
            "save the model again with save_pretrained(…, safe_serialization=True)",
        )
    return folder


def load_model(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - any of transformers' models
    """The model of a folder in float32; `UserError` if its files lack weights, which transformers would make up at random."""
    model, found = kind.from_pretrained(folder, dtype="float32", local_files_only=True, output_loading_info=True)
    if lacking := sorted(found["missing_keys"]):
        raise UserError(
            f"{folder} lacks the weights {lacking[0]} of a {type(model).__name__}", "mend judge in params.yaml"
        )
    return model.eval()


def session(path: Path) -> InferenceSession:
    """An ONNX file on the CPU; `ArtifactError` if it is none."""
    import onnxruntime  # noqa: PLC0415 - slow to import
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidProtobuf  # noqa: PLC0415

    if not path.is_file():
        raise UserError(f"{path} does not exist", "mend judge in params.yaml")
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidProtobuf, RuntimeError) as error:
        raise ArtifactError(f"{path} is no ONNX model", "download it again, or mend judge in params.yaml") from error


def run(net: InferenceSession, batch: np.ndarray) -> list[Any]:
    """The outputs of a network with one input, for a batch (N, 3, H, W) float32, one image at a time if it takes no more."""
    source = net.get_inputs()[0]
    if source.shape and source.shape[0] == 1:
        parts = [net.run(None, {source.name: image[None]}) for image in batch]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    return list(net.run(None, {source.name: batch}))


def side_of(config: Any, default: int = 224) -> int:  # noqa: ANN401 - transformers' configurations have no common type
    """The side of the images that a transformers vision model takes, pixels."""
    side = getattr(getattr(config, "vision_config", config), "image_size", default)
    return int(side if isinstance(side, int) else max(side))


def resized(images: np.ndarray, width: int, height: int) -> np.ndarray:
    """(N, H, W, 3) uint8 at another size, (N, height, width, 3) uint8."""
    size = (width, height)
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BICUBIC)) for i in images])


def planes(images: np.ndarray, mean: float | np.ndarray, scale: float | np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 of (pixel - mean) / scale."""
    return ((images.astype(np.float32) - mean) / scale).astype(np.float32).transpose(0, 3, 1, 2)


def as_probability(score: np.ndarray, threshold: float, *, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Scores in [low, high] to [0, 1], linear on either side of the threshold, which becomes one half; NaN stays."""
    below = 0.5 * (score - low) / max(threshold - low, 1e-12)
    above = 0.5 + 0.5 * (score - threshold) / max(high - threshold, 1e-12)
    return np.clip(np.where(score < threshold, np.minimum(below, np.nextafter(0.5, 0)), above), 0, 1)


def read_images(paths: tuple[Path, ...]) -> list[np.ndarray]:
    """Reference images, each (H, W, 3) uint8, upright."""
    return [read_image(path) for path in paths]


def threshold_of(params: ReaderParams, default: float) -> float:
    """The threshold that params state, or the reader's own."""
    return default if params.threshold is None else params.threshold
