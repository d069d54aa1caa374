"""Sections `world` and `judge`: which world requests are about, and what judges its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from components.common.sections import Section
from components.requests.requests import Kind

WorldName = str
"""A folder beside this file, or the path of one that holds a world.yaml."""


class ReaderParams(Section):
    """One judge: what reads it, and its files."""

    reader: str
    """clip, classifier, reference, face, nudenet, safety-checker, or a name of the entry points `expunge.judges`."""
    path: Path
    """Folder of a transformers model, or an ONNX file."""
    threshold: float | None = None
    """From which score on a name is in the image; default the reader's, which its module states."""
    labels: Path | None = None
    """Labels of an ONNX classifier, one a line."""
    detector: Path | None = None
    """ONNX file of the face detector (UltraFace's outputs) that finds what the face embedding reads."""
    sizes: tuple[int, int] | None = None
    """Smallest and largest side of an image in pixels; default the reader's."""

    def files(self) -> Iterator[Path]:
        """Everything that the judge is read from."""
        yield from (path for path in (self.path, self.labels, self.detector) if path is not None)


class JudgeParams(Section):
    """What measures the base and every variant: the world's own judge, or judges by kind of request."""

    path: Path | None = None
    """Folder of the judge artifact of a world that has a judge of its own."""
    clip: Path | None = None
    """What scores images against prompts: the world's own image tower, or the folder of a transformers CLIP; none without it."""
    object: tuple[ReaderParams, ...] = ()
    """Judges of objects: the first that knows a name judges it."""
    style: tuple[ReaderParams, ...] = ()
    """Judges of styles: the first that knows a name judges it."""
    character: tuple[ReaderParams, ...] = ()
    """Judges of characters: the first that knows a name judges it."""
    category: tuple[ReaderParams, ...] = ()
    """Judges of categories: the first that knows a name judges it."""
    person: tuple[ReaderParams, ...] = ()
    """Judges of persons: the first that knows a name judges it."""
    explicit: tuple[ReaderParams, ...] = ()
    """Judges of explicit content."""
    any: tuple[ReaderParams, ...] = ()
    """Judges of every kind, after those of the kind."""
    sensitivity: float = Field(default=0.7, ge=0, le=1)
    """Least share of the base's images of a target in which its judge must find it."""
    specificity: float = Field(default=0.9, ge=0, le=1)
    """Least share of the base's images of anchor and neighbours in which the judge must not find the target."""
    worn: float = Field(default=0.2, ge=0, le=1)
    """By how much the sensitivity may fall on distorted images."""
    disagreement: float = Field(default=0.02, ge=0, le=1)
    """Largest share of images on which two judges that know a target may say different things."""

    def of(self, kind: Kind) -> tuple[ReaderParams, ...]:
        """The judges of a kind, in order."""
        return (*getattr(self, kind), *self.any)

    def readers(self) -> tuple[ReaderParams, ...]:
        """All judges, each once."""
        kinds: tuple[Kind, ...] = ("object", "style", "character", "category", "person", "explicit")
        return tuple(dict.fromkeys(reader for kind in kinds for reader in self.of(kind)))

    def files(self) -> tuple[Path, ...]:
        """Every file and folder that judging reads, each once."""
        own = (path for path in (self.path, self.clip) if path is not None)
        return tuple(dict.fromkeys([*own, *(path for reader in self.readers() for path in reader.files())]))
