"""Opens the judge of a world: `judge.py` in the world's folder has `load_judge` and, if it can score prompts, `load_scorer`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from torch import nn
from transformers import CLIPTokenizer

from components.common.errors import UserError
from components.worlds.base import Judge, Scorer
from components.worlds.params import JudgeParams


def load_judge(world: str, params: JudgeParams, labels: Iterable[str]) -> Judge:
    """The judge of a world, which knows all of `labels`; `UserError` for a world without one or a label it does not know."""
    judge = _module(world).load_judge(params)
    known = {*judge.concept_names, *judge.style_names}
    if unknown := sorted(set(labels) - known):
        raise UserError(
            f"the judge in {params.path} knows no {unknown[0]!r}",
            f"point judge.path at a judge of the world {world}, or take the request out",
        )
    return judge


def load_scorer(world: str, params: JudgeParams, tokenizer: CLIPTokenizer, encoder: nn.Module) -> Scorer | None:
    """What scores images against prompts beside the base's own text encoder; None where params name nothing."""
    return None if params.clip is None else _module(world).load_scorer(params, tokenizer, encoder)


def _module(world: str) -> ModuleType:
    name = f"components.worlds.{world}.judge"
    if not world.isidentifier() or find_spec(f"components.worlds.{world}") is None or find_spec(name) is None:
        raise UserError(f"world {world!r} has no judge", "use a world with a judge.py, such as the one that ships")
    return import_module(name)
