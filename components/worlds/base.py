"""What a world is, and what a judge is: everything that the product asks of either.

A world says what can be drawn, how prompts about it are phrased, and who judges images. The product knows worlds by these
protocols alone; a new domain is a new folder beside this file.

    N images, C concepts, S styles
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from components.common.splits import Split
from components.requests.requests import Kind, Request

PRESENT = 0.5
"""A label counts as in the image when its probability reaches this."""


class Prompt(NamedTuple):
    """One prompt, and what the unedited model should draw for it."""

    text: str
    concepts: tuple[str, ...]
    """Labels of what it shows."""
    style: str
    """Label of how it is drawn; empty where that is open."""
    counterpart: str = ""
    """The same prompt about the anchor, where there is one."""
    name_used: str = ""
    """How the target is called in it, to the letter; empty where it is not."""


class Counts(NamedTuple):
    """How many prompts are written for each request and split."""

    per_name: int
    """For each name of the target, of the anchor and of each neighbour."""
    retain: int
    """That show concepts and styles of no request."""
    mixed: int
    """That show the target beside something else."""


class World(Protocol):
    """What can be drawn, and how prompts about it are phrased."""

    name: str

    def check(self, requests: Mapping[str, Request]) -> None:
        """`UserError` for requests that this world cannot serve, before anything is loaded."""
        ...

    def names(self, request: Request, split: Split) -> tuple[str, ...]:
        """Names of the target that prompts of `split` use; one name at least is kept for the evaluation, where there are two."""
        ...

    def forms(self, request: Request) -> tuple[str, ...]:
        """Other spellings of the target's names that mean the same, such as plurals; the filter finds them too."""
        ...

    def labels(self, request: Request) -> tuple[str, ...]:
        """What the judge calls the target."""
        ...

    def prompts(
        self, request: Request, split: Split, rng: np.random.Generator, counts: Counts
    ) -> Iterator[tuple[str, Prompt]]:
        """(role, prompt) of one request and split.

        Roles: target, alias, context (the target in everyday English), anchor, neighbour, mixed (the target beside
        something else), retain (anything else).
        """
        ...

    def corpus(self, count: int, *, seed: int) -> Iterator[str]:
        """`count` prompts for the SAE; no name that is reserved for evaluation is in one."""
        ...

    def benign(self, count: int, *, split: Split, seed: int) -> Iterator[str]:
        """`count` phrases of everyday English."""
        ...

    def surround(self, text: str, rng: np.random.Generator, *, before: int = 4) -> str:
        """`text`, half of the time among up to `before` words in front of it and some behind it, so that its place varies."""
        ...

    def candidates(self, kind: Kind) -> tuple[str, ...]:
        """Names among which neighbours of a request of `kind` may be found."""
        ...

    def known_words(self) -> frozenset[str]:
        """Words that are no misspellings of a name."""
        ...

    def known_names(self) -> tuple[str, ...]:
        """Every name of every thing and style that this world knows: a longer one shields a target's inside it."""
        ...


class Judgement(NamedTuple):
    """What a judge says of N images, as calibrated probabilities."""

    concepts: np.ndarray
    """(N, C) that each concept is in the image."""
    styles: np.ndarray
    """(N, S) of each style; rows sum to 1."""
    none: np.ndarray
    """(N,) that nothing recognisable is in the image."""
    concept_names: tuple[str, ...]
    style_names: tuple[str, ...]

    def top(self) -> list[str]:
        """For each image the likeliest concept, or "none"."""
        best = self.concepts.argmax(1)
        return ["none" if n >= PRESENT else self.concept_names[i] for n, i in zip(self.none, best, strict=True)]

    def present(self) -> list[frozenset[str]]:
        """For each image every concept found in it; empty when the image is unrecognisable."""
        found = (self.concepts >= PRESENT) & (self.none < PRESENT)[:, None]
        return [frozenset(np.asarray(self.concept_names)[row].tolist()) for row in found]

    def style(self) -> list[str]:
        """For each image its likeliest style."""
        return [self.style_names[i] for i in self.styles.argmax(1)]

    def found(self, label: str, *, style: bool) -> np.ndarray:
        """For each image whether it shows the label, (N,) of 0 and 1."""
        if style:
            return np.array([name == label for name in self.style()], float)
        return np.array([label in names for names in self.present()], float)


class Found(Protocol):
    """What was found in N images."""

    def found(self, label: str, *, style: bool) -> np.ndarray:
        """For each image whether it shows the label: (N,) of 0, 1 and NaN where that cannot be told."""
        ...


class Judge(Protocol):
    """Tells what is in an image; it never saw the generator, and is pinned by a digest."""

    digest: str
    """SHA-256 of the weights and of whatever else it decides by."""
    sizes: tuple[int, int]
    """Smallest and largest side of an image, in pixels, that it was made for."""

    def knows(self, name: str) -> bool:
        """Whether it can tell if `name` is in an image."""
        ...

    def present(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Probabilities (N, K) that each of K names that it knows is in each of (N, H, W, 3) uint8 images.

        From `PRESENT` on it is there; NaN where the image cannot be judged, such as one without a face.
        """
        ...


class Panel(Protocol):
    """Everyone who judges the images of an evaluation."""

    digest: str
    sizes: tuple[int, int]
    """Smallest and largest side of an image, in pixels, that all of them were made for."""

    def judges_of(self, name: str) -> tuple[Judge, ...]:
        """Those that know a name, the one that judges it first."""
        ...

    def __call__(self, images: np.ndarray) -> Found:
        """Judges (N, H, W, 3) uint8 images."""
        ...


class WorldJudge(Judge, Protocol):
    """The judge of a closed world, which tells all of its concepts and styles at once."""

    concept_names: tuple[str, ...]
    style_names: tuple[str, ...]

    def judges_of(self, name: str) -> tuple[Judge, ...]:
        """Itself, for a name that it knows."""
        ...

    def __call__(self, images: np.ndarray) -> Judgement:
        """Judges (N, H, W, 3) uint8 images."""
        ...


class Subject(NamedTuple):
    """A name that a judge is asked about."""

    name: str
    kind: Kind
    alternatives: tuple[str, ...] = ()
    """What else may be in the image instead, such as the anchor and the neighbours."""
    images: tuple[Path, ...] = ()
    """Reference images."""


class Scorer(Protocol):
    """A measure of how well images fit their prompts."""

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """(N, H, W, 3) uint8 and N prompts to (N,)."""
        ...
