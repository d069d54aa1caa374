"""CLIP as a zero-shot judge, and as the CLIP score (Radford et al. 2021; Hessel et al. 2021), of a local transformers folder.

N images, K names, D joint

A name is in an image with the probability that the softmax over the name and what else may be there gives it: the anchor
and the neighbours of its request, and captions that say nothing. Logits are scaled as CLIP was trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from components.worlds.base import Subject
from components.worlds.params import ReaderParams
from components.worlds.readers.shared import load_model, model_folder, pin, side_of

NOTHING = ("a picture", "a photo of something else", "an abstract pattern")
"""Captions that say nothing of what is in the image."""
BATCH = 32


def open_judge(params: ReaderParams, subjects: Sequence[Subject]) -> ClipJudge:
    """The judge in `params.path`; `UserError` for a folder that is no CLIP."""
    return ClipJudge(params, subjects)


class Clip:
    """Both towers of a CLIP."""

    def __init__(self, folder: Path) -> None:
        self.model = load_model(CLIPModel, folder)
        self.width: int = self.model.visual_projection.out_features
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def images(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images (H, W, 3) uint8 to unit vectors (N, D)."""
        parts = []
        for start in range(0, len(images), BATCH):
            pixels = self.processor(list(images[start : start + BATCH]), return_tensors="pt").pixel_values
            parts.append(
                F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=-1)
            )
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit vectors (N, D)."""
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            parts.append(F.normalize(self.model.text_projection(self.model.text_model(**tokens).pooler_output), dim=-1))
        return torch.cat(parts) if parts else torch.zeros(0, self.width)


class ClipJudge:
    """Knows every name."""

    def __init__(self, params: ReaderParams, subjects: Sequence[Subject]) -> None:
        self.clip = Clip(model_folder(params))
        side = side_of(self.clip.model.config)
        self.sizes = params.sizes or (side // 2, 16 * side)
        self._subjects = {subject.name: subject for subject in subjects}
        self.digest = pin(params, subjects=tuple(subjects), nothing=NOTHING)

    def knows(self, name: str) -> bool:  # noqa: ARG002 - any name is a caption
        """Whether it can tell if `name` is in an image: any name can be said."""
        return True

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K), as `Judge.present` says."""
        shown = self.clip.images(list(images))
        scale, out = self.clip.model.logit_scale.exp().item(), []
        for name in names:
            item = self._subjects.get(name, Subject(name, "object"))
            captions = [caption(name, style=item.kind == "style")]
            captions += [caption(other, style=item.kind == "style") for other in item.alternatives] + list(NOTHING)
            logits = scale * shown @ self.clip.texts(captions).T  # (N, 1 + alternatives)
            out.append(logits.softmax(1)[:, 0].detach().numpy())
        return np.stack(out, 1) if out else np.zeros((len(images), 0))


class ClipScore:
    """How well images fit their prompts."""

    def __init__(self, folder: Path) -> None:
        self.clip = Clip(model_folder(ReaderParams(reader="clip", path=folder)))

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """cos(image, prompt) of each pair: (N, H, W, 3) uint8 and N prompts to (N,), in [-1, 1]."""
        return (self.clip.images(list(images)) * self.clip.texts(prompts)).sum(1).numpy()


def caption(name: str, *, style: bool) -> str:
    """What CLIP is asked about a name: "a photo of snoopy", "a picture in the style of van gogh", "an oil painting"."""
    if re.match(r"(?:an?|the) ", name):
        return name if style else f"a photo of {name}"
    return f"a picture in the style of {name}" if style else f"a photo of {name}"
