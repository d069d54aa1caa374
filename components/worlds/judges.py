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
    judge: Judge = _module(world).load_judge(params)
    known = {*judge.concept_names, *judge.style_names}
    if unknown := sorted(set(labels) - known):
        raise UserError(
            f"the judge in {params.path} does not know {unknown[0]!r}",
            f"point judge.path at a judge of the world {world}, or take the request out",
        )
    return judge


def load_scorer(world: str, params: JudgeParams, tokenizer: CLIPTokenizer, encoder: nn.Module) -> Scorer | None:
    """What scores images against prompts beside the base's own text encoder; None where params name nothing.

    Raises `UserError` where params name something and the world's judge cannot score.
    """
    if params.clip is None:
        return None
    module = _module(world)
    if not hasattr(module, "load_scorer"):
        raise UserError(f"the judge of the world {world} scores no prompts", "take judge.clip out of params.yaml")
    return module.load_scorer(params, tokenizer, encoder)


def judge_module(world: str) -> str:
    """The module that judges a world; `UserError` if the world has none. What it imports is what judging depends on."""
    folder = f"components.worlds.{world}"
    if not world.isidentifier() or find_spec(folder) is None or find_spec(f"{folder}.judge") is None:
        raise UserError(f"world {world!r} has no judge", "use a world with a judge.py, such as the one that ships")
    return f"{folder}.judge"


def _module(world: str) -> ModuleType:
    return import_module(judge_module(world))
