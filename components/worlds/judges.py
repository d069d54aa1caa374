"""Opens what judges images: the judge of a world that has one, or judges by kind of request from the user's own models.

A world's own judge is `judge.py` in its folder, with `load_judge` and, if it can score prompts, `load_scorer`. Judges by kind
are read by the modules of components/worlds/readers, or by one that a package names in the entry points `expunge.judges`;
each has `open_judge(params, subjects)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from components.common.errors import UserError
from components.diffusion.folder import LOADING
from components.requests.requests import Kind
from components.worlds.base import Judge, Panel, Scorer, Subject
from components.worlds.panel import JudgePanel
from components.worlds.params import JudgeParams, ReaderParams

if TYPE_CHECKING:
    from torch import nn
    from transformers import CLIPTokenizer

    from components.worlds.base import WorldJudge

HERE = Path(__file__).parent
READERS = {
    "clip": "clip", "classifier": "classifier", "reference": "reference", "face": "face", "nudenet": "nudenet",
    "safety-checker": "safety_checker",
}  # fmt: skip
"""The readers that ship, and their modules."""


def open_panel(world: str, params: JudgeParams, subjects: Sequence[Subject], needed: Iterable[str]) -> Panel:
    """Everyone who judges; `UserError` for a name of `needed` that no judge knows, or a judge that cannot be read."""
    readers = params.readers()
    if params.path is not None:
        if readers:
            raise UserError("judge names a path and judges by kind", "keep the world's own judge or those by kind")
        return load_judge(world, params, needed)
    opened = open_readers(params, subjects)
    known = {s.name: [opened[r] for r in params.of(s.kind) if opened[r].knows(s.name)] for s in subjects}
    kinds: dict[str, Kind] = {subject.name: subject.kind for subject in subjects}
    if missing := [name for name in needed if not known.get(name)]:
        kind: Kind = kinds.get(missing[0], "object")
        listed = ", ".join(reader.reader for reader in params.of(kind)) or "none"
        raise UserError(
            f"no judge of kind {kind} knows {missing[0]!r} ({listed} listed)",
            f"add one to judge.{kind} in params.yaml, such as {{reader: clip, path: FOLDER}}",
        )
    return JudgePanel(known)


def open_readers(params: JudgeParams, subjects: Sequence[Subject]) -> dict[ReaderParams, Judge]:
    """Every judge that params list, each opened once."""
    return {reader: open_reader(reader, subjects) for reader in params.readers()}


def open_reader(params: ReaderParams, subjects: Sequence[Subject]) -> Judge:
    """One judge; `UserError` for a reader that nobody provides, or files that are no model of its kind."""
    if params.reader in READERS:
        with reading(params.reader, params.path):
            return import_module(reader_module(params.reader)).open_judge(params, subjects)
    found = entry_points(group="expunge.judges", name=params.reader)
    if not found:
        others = sorted(point.name for point in entry_points(group="expunge.judges"))
        raise UserError(
            f"reader {params.reader!r} of a judge is unknown", f"use one of: {', '.join([*READERS, *others])}"
        )
    return next(iter(found)).load()(params, subjects)


@contextmanager
def reading(reader: str, path: Path) -> Iterator[None]:
    """`UserError` for whatever transformers says of a folder that holds no model of a reader's kind; other threads wait."""
    try:
        with LOADING:
            yield
    except (OSError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        said = " ".join(str(error).split()).split(". ")[0][:200]
        raise UserError(f"the judge {reader} cannot read {path} ({said})", "mend judge in params.yaml") from error


def reader_module(reader: str) -> str:
    """The module of a reader that ships."""
    return f"components.worlds.readers.{READERS[reader]}"


def load_judge(world: str, params: JudgeParams, labels: Iterable[str]) -> WorldJudge:
    """The judge of a world, which knows all of `labels`; `UserError` for a world without one or a label it does not know."""
    judge = _module(world).load_judge(params)
    if unknown := sorted(label for label in set(labels) if not judge.knows(label)):
        raise UserError(
            f"the judge in {params.path} does not know {unknown[0]!r}",
            f"point judge.path at a judge of the world {world}, or take the request out",
        )
    return judge


def load_scorer(
    world: str, params: JudgeParams, tokenizer: CLIPTokenizer | None = None, encoder: nn.Module | None = None
) -> Scorer | None:
    """What scores images against prompts; None where params name nothing.

    A world's own reads prompts by the base's text encoder; the folder of a transformers CLIP needs neither. Raises `UserError`
    where params name something and the world's judge cannot score.
    """
    if params.clip is None:
        return None
    if params.path is None:
        with reading("clip", params.clip):
            return import_module(reader_module("clip")).ClipScore(params.clip)
    module = _module(world)
    if not hasattr(module, "load_scorer"):
        raise UserError(f"the judge of the world {world} scores no prompts", "take judge.clip out of params.yaml")
    return module.load_scorer(params, tokenizer, encoder)


def judge_module(world: str) -> str:
    """The module that judges a world that ships; `UserError` if it has none. What it imports is what judging depends on."""
    folder = f"components.worlds.{world}"
    if not world.isidentifier() or find_spec(folder) is None or find_spec(f"{folder}.judge") is None:
        raise UserError(
            f"world {world!r} has no judge",
            "use a world with a judge.py, or take judge.path out of params.yaml and list judges by kind",
        )
    return f"{folder}.judge"


def _module(world: str) -> ModuleType:
    own = Path(world) / "judge.py"
    if own.is_file() and not (world.isidentifier() and (HERE / world).is_dir()):
        spec = spec_from_file_location("expunge_world_judge", own)
        assert spec is not None  # a .py file has a loader
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return import_module(judge_module(world))
