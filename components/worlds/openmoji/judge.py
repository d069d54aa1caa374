"""The judge of the embedded world: a classifier of its images that never saw the generator, pinned by digest.

    N images, H = W = 64 pixels, C concepts, S styles

It answers which concepts are in an image (multi-label, so that pairs work), in which style, and whether there is
anything recognisable at all. Every answer is a probability, calibrated by one temperature a head (Guo et al. 2017).
Its labels are those of its own sidecar, so that judging needs neither the world nor what draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from components.common.artifacts import read_artifact
from components.common.errors import ArtifactError, UserError
from components.common.files import SIDECAR, digest
from components.diffusion.images import to_model
from components.worlds.base import PRESENT, Judgement
from components.worlds.openmoji.clip import ClipScore
from components.worlds.params import JudgeParams

FORMAT = "expunge/judge"
SIDE = 64
"""Side of the images that it was trained on, pixels."""
_REMEDY = "pack it again: python -m training.openmoji.stage pack"


def load_judge(params: JudgeParams) -> Judge:
    """The judge in `params.path`; `ArtifactError` if it is missing, altered, of another format, or not labelled."""
    if params.path is None:
        raise UserError("judge.path names no folder", "set it in params.yaml, such as assets/openmoji/judge")
    return Judge.load(params.path)


def load_scorer(params: JudgeParams, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> ClipScore:
    """The CLIP score of the heads in `params.clip`; `UserError` where params name none."""
    if params.clip is None:
        raise UserError("judge.clip names no folder", "set it in params.yaml, such as assets/clip")
    return ClipScore.load(params.clip, encoder, tokenizer)


class JudgeNet(nn.Module):
    """A small convolutional network: logits of concepts, styles and none, and one temperature for each head."""

    temperature: torch.Tensor
    """(3,)"""

    def __init__(self, concepts: int, styles: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        plan = ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 192, 2), (192, 192, 1))
        for before, after, stride in plan:
            blocks += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.SiLU()]
        self.body = nn.Sequential(*blocks)
        self.concept = nn.Conv2d(192, concepts, 1)  # a map, so that a half-size drawing counts whole
        assert self.concept.bias is not None
        nn.init.constant_(self.concept.bias, -7.0)  # most concepts are absent: start there, not at one half
        self.rest = nn.Linear(2 * 192, styles + 1)
        self.register_buffer("temperature", torch.ones(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, 64, 64) in [-1, 1] to uncalibrated logits (N, C), (N, S), (N,)."""
        h = self.body(x)  # (N, 192, 4, 4)
        concept = torch.logsumexp(self.concept(h).flatten(2), dim=2)
        rest = self.rest(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1))
        return concept, rest[:, :-1], rest[:, -1]


class Judge:
    """The pinned judge; it opens no bytes but those that its sidecar names."""

    sizes = (SIDE, SIDE)

    def __init__(self, net: nn.Module, concept_names: Sequence[str], style_names: Sequence[str], digest: str) -> None:
        self.net = net.eval()
        self.concept_names, self.style_names = tuple(concept_names), tuple(style_names)
        self.digest = digest

    @classmethod
    def load(cls, folder: Path, build: Callable[[int, int], nn.Module] = JudgeNet) -> Judge:
        """Opens a judge artifact, whose network `build` makes of the numbers of concepts and styles; `ArtifactError` as `load_judge` says."""
        tensors, sidecar = read_artifact(folder, FORMAT)
        concepts, styles = (_labels(sidecar["facts"], kind, folder) for kind in ("concepts", "styles"))
        net = build(len(concepts), len(styles))
        wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != wanted:
            name = min(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
            raise ArtifactError(
                f"{folder} lists {len(concepts)} concepts and {len(styles)} styles, but its {name} has shape "
                f"{found.get(name)}, not {wanted.get(name)}",
                _REMEDY,
            )
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        return cls(net, concepts, styles, digest(folder / SIDECAR))

    def knows(self, name: str) -> bool:
        """Whether `name` is one of its labels."""
        return name in self.concept_names or name in self.style_names

    def judges_of(self, name: str) -> tuple[Judge, ...]:
        """Itself, for a name that it knows."""
        return (self,) if self.knows(name) else ()

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K) that each of K labels is in each image; none of a concept where nothing is recognisable."""
        said = self(images)
        seen = said.concepts * (said.none < PRESENT)[:, None]
        columns = [
            said.styles[:, self.style_names.index(name)]
            if name in self.style_names
            else seen[:, self.concept_names.index(name)]
            for name in names
        ]
        return np.stack(columns, 1) if columns else np.zeros((len(images), 0))

    @torch.no_grad()
    def __call__(self, images: np.ndarray, *, batch: int = 256) -> Judgement:
        """Judges (N, 64, 64, 3) uint8 images."""
        shapes = (len(self.concept_names),), (len(self.style_names),), ()
        concepts, styles, none = ([np.zeros((0, *shape), np.float32)] for shape in shapes)
        t = self.net.get_buffer("temperature")
        for start in range(0, len(images), batch):
            concept, style, nothing = self.net(to_model(images[start : start + batch]))
            concepts.append((concept / t[0]).sigmoid().numpy())
            styles.append((style / t[1]).softmax(1).numpy())
            none.append((nothing / t[2]).sigmoid().numpy())
        joined = (np.concatenate(parts) for parts in (concepts, styles, none))
        return Judgement(*joined, concept_names=self.concept_names, style_names=self.style_names)


def _labels(facts: dict[str, object], kind: str, folder: Path) -> list[str]:
    """The labels of one head, in the order of its outputs."""
    labels = facts.get(kind)
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
        raise ArtifactError(f"{folder / SIDECAR} lists no {kind}", _REMEDY)
    if len(set(labels)) < len(labels):
        raise ArtifactError(f"{folder / SIDECAR} lists one of its {kind} twice", _REMEDY)
    return labels
