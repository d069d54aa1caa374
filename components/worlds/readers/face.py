"""A face embedding beside reference images as a judge of people: the user's own ONNX files.

    embedding  (N, 3, S, S) RGB in [-1, 1] to (N, D): ArcFace (Deng et al. 2019) and its kin, S mostly 112
    detector   UltraFace's outputs: scores (1, B, 2) and boxes (1, B, 4) in parts of the width and height

The largest face that the detector finds with a score of at least 0.7 is compared with the faces of the reference images. The
image shows the person when the mean cosine reaches the threshold, by default 0.35. An image without a face cannot be judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.common.errors import UserError
from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.shared import (
    as_probability,
    pin,
    planes,
    read_images,
    resized,
    run,
    session,
    threshold_of,
)

THRESHOLD, FACE = 0.35, 0.7
MARGIN = 0.1
"""Part of a face's box that is added on each side."""


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> Faces:
    """The judge in `params.path`, which knows people with reference images; `UserError` for one that shows no face."""
    return Faces(params, subjects)


class Faces:
    """Knows the people that have reference images."""

    def __init__(self, params: ReaderParams, subjects: Sequence[Subject]) -> None:
        if params.detector is None:
            raise UserError(f"the judge face of {params.path} has no detector", "set detector to UltraFace's ONNX file")
        self.embedding, self.detector = session(params.path), session(params.detector)
        shape = self.embedding.get_inputs()[0].shape
        self.side = shape[2] if isinstance(shape[2], int) else 112
        self.sizes = params.sizes or (self.side, 32 * self.side)
        self.threshold = threshold_of(params, THRESHOLD)
        self.known = {s.name: self._references(s) for s in subjects if s.images and s.kind == "person"}
        self.digest = pin(params, known={name: vectors.tolist() for name, vectors in self.known.items()})

    def knows(self, name: str) -> bool:
        """Whether there are reference images of `name`."""
        return name in self.known

    def _references(self, subject: Subject) -> np.ndarray:
        vectors = []
        for path, image in zip(subject.images, read_images(subject.images), strict=True):
            vector = self.embed(image[None])[0]
            if np.isnan(vector).any():
                raise UserError(f"reference image {path} shows no face", "take it out, or give one with a face in it")
            vectors.append(vector)
        return np.stack(vectors)

    def face(self, image: np.ndarray) -> np.ndarray | None:
        """The largest face in an image (H, W, 3), cut out at the embedding's size; None without one."""
        shape = self.detector.get_inputs()[0].shape
        height, width = (
            size if isinstance(size, int) else default for size, default in zip(shape[2:], (240, 320), strict=True)
        )
        scores, boxes = run(self.detector, planes(resized(image[None], width, height), 127, 128))
        sure = boxes[0][scores[0][:, 1] >= FACE]
        if not len(sure):
            return None
        left, top, right, bottom = sure[np.argmax((sure[:, 2] - sure[:, 0]) * (sure[:, 3] - sure[:, 1]))]
        wide, high = (right - left) * MARGIN, (bottom - top) * MARGIN
        h, w, _ = image.shape
        rows = slice(max(0, int((top - high) * h)), max(1, int(np.ceil((bottom + high) * h))))
        columns = slice(max(0, int((left - wide) * w)), max(1, int(np.ceil((right + wide) * w))))
        part = image[rows, columns]
        return resized(part[None], self.side, self.side)[0] if part.size else None

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, 3) to unit vectors (N, D) of their largest faces; NaN for an image without a face."""
        faces = [self.face(image) for image in images]
        seen = [i for i, face in enumerate(faces) if face is not None]
        blank = np.zeros((1, self.side, self.side, 3), np.uint8)
        cut = np.stack([face for face in faces if face is not None]) if seen else blank
        vectors = run(self.embedding, planes(cut, 127.5, 127.5))[0]
        out = np.full((len(images), vectors.shape[1]), np.nan)
        out[seen] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[: len(seen)]
        return out

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says; NaN where no face is found."""
        if not len(images):
            return np.zeros((0, len(names)))
        shown = self.embed(images)
        near = np.stack([(shown @ self.known[name].T).mean(1) for name in names], 1)
        return as_probability(near, self.threshold, low=-1.0)
