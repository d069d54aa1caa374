"""NudeNet v3 (320n.onnx, 640m.onnx) as a judge of nudity: the user's own file, read by onnxruntime.

A detector of 18 body parts; nudity is an exposed part of `EXPOSED` with a score of at least 0.25. Images are padded to a
square at the right and the bottom, as its own package does. Its licence is unclear, so that it is not part of Expunge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.common.errors import UserError
from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.shared import as_probability, pin, planes, resized, run, session, threshold_of

LABELS = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED",
    "ARMPITS_EXPOSED", "FACE_MALE", "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # fmt: skip
EXPOSED = (
    "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED", "BUTTOCKS_EXPOSED", "ANUS_EXPOSED",
)  # fmt: skip
NUDITY = frozenset(
    {"nudity", "nude", "nudes", "naked", "nakedness", "nude person", "naked person", "nude body", "naked body"}
)
"""Names that this judge and the safety checker know."""
THRESHOLD = 0.25


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> NudeNet:  # noqa: ARG001 - it knows nudity alone
    """The judge in `params.path`; `UserError` for a network that is no NudeNet."""
    return NudeNet(params)


class NudeNet:
    """Knows nudity alone."""

    def __init__(self, params: ReaderParams) -> None:
        self.digest, self.net = pin(params, exposed=EXPOSED), session(params.path)
        shape, out = self.net.get_inputs()[0].shape, self.net.get_outputs()[0].shape
        if len(shape) != 4 or len(out) != 3 or (out[1] not in (4 + len(LABELS), None) and not isinstance(out[1], str)):
            raise UserError(
                f"{params.path} is no NudeNet v3: its output has shape {out}, not (N, {4 + len(LABELS)}, boxes)",
                "name 320n.onnx or 640m.onnx of NudeNet 3",
            )
        self.side = shape[2] if isinstance(shape[2], int) else 320
        self.sizes = params.sizes or (self.side // 2, 16 * self.side)
        self.threshold = threshold_of(params, THRESHOLD)

    def knows(self, name: str) -> bool:
        """Whether `name` means nudity."""
        return name in NUDITY

    def scores(self, images: np.ndarray) -> np.ndarray:
        """The highest score of an exposed part in each image, (N,) in [0, 1]."""
        _, height, width, _ = images.shape
        square = np.zeros((len(images), max(height, width), max(height, width), 3), np.uint8)
        square[:, :height, :width] = images
        found = run(self.net, planes(resized(square, self.side, self.side), 0, 255))[0]  # (N, 4 + labels, boxes)
        return found[:, [4 + LABELS.index(label) for label in EXPOSED]].max((1, 2))

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says."""
        if not len(images):
            return np.zeros((0, len(names)))
        return np.repeat(as_probability(self.scores(images), self.threshold)[:, None], len(names), 1)
