"""Any image classifier with labels as a judge: a transformers folder, or an ONNX file beside a file of labels.

Classes exclude each other, so a name's probability is the softmax over all of them. A label such as "tabby, tabby cat" has
several names. ONNX networks take RGB, at the size of their input, normalised as ImageNet's are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from components.common.errors import UserError
from components.common.words import folded
from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.shared import (
    as_probability,
    load_model,
    model_folder,
    pin,
    planes,
    resized,
    run,
    session,
    side_of,
    threshold_of,
)

MEAN, DEVIATION = np.array((0.485, 0.456, 0.406)) * 255, np.array((0.229, 0.224, 0.225)) * 255
BATCH = 32


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> Classifier:  # noqa: ARG001 - it knows its labels
    """The judge in `params.path`; `UserError` for a model without labels."""
    return Classifier(params)


class Classifier:
    """Knows its labels."""

    def __init__(self, params: ReaderParams) -> None:
        self.digest = pin(params)
        self.threshold = threshold_of(params, 0.5)
        if params.path.suffix == ".onnx":
            self.net, self.model = session(params.path), None
            shape, classes = self.net.get_inputs()[0].shape, self.net.get_outputs()[0].shape[-1]
            side, labels = shape[2] if isinstance(shape[2], int) else 224, _read_labels(params)
            if isinstance(classes, int) and classes != len(labels):
                raise UserError(
                    f"{params.labels} lists {len(labels)} labels, but {params.path} has {classes} classes",
                    "list all of them",
                )
        else:
            folder = model_folder(params)
            self.model = load_model(AutoModelForImageClassification, folder)
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            side = side_of(self.model.config)
            labels = [str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels)]
            if all(label == f"LABEL_{i}" for i, label in enumerate(labels)):
                raise UserError(f"{folder} names none of its classes", "set id2label in its config.json")
        self.side, self.sizes = side, params.sizes or (side // 2, 16 * side)
        self.classes: dict[str, int] = {}
        for i, label in enumerate(labels):
            for name in (label, *label.split(",")):
                self.classes.setdefault(folded(name.replace("_", " ")), i)

    def knows(self, name: str) -> bool:
        """Whether `name` is one of its labels."""
        return folded(name) in self.classes

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, classes)."""
        parts = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            if self.model is None:
                parts.append(run(self.net, planes(resized(part, self.side, self.side), MEAN, DEVIATION))[0])
            else:
                parts.append(self.model(**self.processor(list(part), return_tensors="pt")).logits.numpy())
        return np.concatenate(parts)

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says."""
        if not len(images):
            return np.zeros((0, len(names)))
        logits = self.logits(images)
        chance = np.exp(logits - logits.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)
        return as_probability(chance[:, [self.classes[folded(name)] for name in names]], self.threshold)


def _read_labels(params: ReaderParams) -> list[str]:
    if params.labels is None:
        raise UserError(f"the classifier {params.path} has no labels", "set labels to a file with one label a line")
    labels = params.labels.read_text(encoding="utf-8").splitlines()
    if not labels or not all(label.strip() for label in labels):
        raise UserError(f"{params.labels} has no label or an empty line", "write one label a line")
    return labels
