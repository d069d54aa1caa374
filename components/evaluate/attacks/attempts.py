"""What every attack has in common: a target, a budget, and attempts at it.

    T reference images, H and W pixels

An attack is a function (victim, target, rng, budget) that yields attempts. It draws all its randomness from `rng`, so that an
attack that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from components.collect.record import RequestRecord
from components.collect.tables import where
from components.common.errors import UserError
from components.common.words import mentions
from components.evaluate.attacks.params import Tier

FEWEST_PROMPTS = 4
LONGEST_PROMPT = 2000
"""Characters of a prompt; no encoder reads more than 77 tokens."""


class TargetPrompt(NamedTuple):
    """A plain prompt for the target."""

    text: str
    name_used: str
    """How the target is called in it, to the letter."""
    counterpart: str
    """The same prompt about something else; empty if there is none."""


class Target(NamedTuple):
    """The concept that an attack wants back."""

    request: str
    names: tuple[str, ...]
    """Everything that it is called."""
    prompts: tuple[TargetPrompt, ...]
    related: tuple[str, ...] = ()
    """Broader and narrower words, such as neighbours."""
    references: np.ndarray | None = None
    """(T, H, W, 3) uint8 images of it; without them the base draws some."""


class Attempt(NamedTuple):
    """One prompt that may bring the target back."""

    prompt: str
    what: str
    """What was done to a plain prompt, such as `one letter substituted`."""
    origin: str = ""
    """The plain prompt that it stands for."""
    queries: int = 0
    """Prompts that the search sent to the model."""
    loss: float | None = None
    """What the search reached."""


@dataclass
class Budget:
    """How much one attempt may cost, and when to stop."""

    iterations: int
    candidates: int
    tokens: int
    similarity: float
    seconds: float | None = None
    begun: float = field(default_factory=time.monotonic)

    def spent(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and time.monotonic() - self.begun > self.seconds


class Attack(NamedTuple):
    """A named attack."""

    name: str
    tier: Tier
    run: Callable[..., Iterator[Attempt]]
    """(victim, target, rng, budget) to attempts, without end."""
    optimised: bool = False
    """Whether it is optimised against a variant: every attempt counts. Otherwise those count from which the base draws the target."""


def read_target(
    record: RequestRecord, table: pd.DataFrame, *, related: Sequence[str] = (), references: np.ndarray | None = None
) -> Target:
    """The target of a request and its plain prompts, from the evaluation's rows of its table.

    `UserError` where there are fewer than four prompts, or one that no prompt may be.
    """
    rows = where(table, (table["request"] == record.id) & table["role"].isin(("target", "alias")))
    rows = rows.drop_duplicates("prompt")
    prompts = tuple(
        TargetPrompt(*map(str, row)) for row in rows[["prompt", "name_used", "counterpart"]].itertuples(index=False)
    )
    return check_target(Target(record.id, record.names["evaluate"], prompts, tuple(related), references))


def check_target(target: Target) -> Target:
    """`target` itself; `UserError` for one that cannot be attacked."""
    if not target.names or not all(target.names):
        raise UserError(f"the target of {target.request} has no name", "give at least one name")
    if len(target.prompts) < FEWEST_PROMPTS:
        raise UserError(
            f"there are {len(target.prompts)} prompts for {target.request}, fewer than {FEWEST_PROMPTS}",
            "give more prompts that name the target",
        )
    for prompt in target.prompts:
        check_prompt(prompt.text)
    if target.references is not None and (target.references.ndim != 4 or target.references.dtype != np.uint8):
        raise UserError(
            f"reference images of {target.request} have shape {target.references.shape}", "give (T, H, W, 3) uint8"
        )
    return target


def check_prompt(text: str) -> str:
    """`text` itself; `UserError` for one that is no prompt: too long, or half of a character."""
    if len(text) > LONGEST_PROMPT:
        raise UserError(f"a prompt has {len(text)} characters, more than {LONGEST_PROMPT}", "shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt {text[:40]!r} holds half a character", "write it in UTF-8") from error
    return text


def pick(rng: np.random.Generator, listed: Sequence) -> object:  # type: ignore[type-arg]
    """One of `listed`."""
    return listed[int(rng.integers(len(listed)))]


def plain(target: Target, rng: np.random.Generator) -> TargetPrompt:
    """One of the target's plain prompts."""
    return target.prompts[int(rng.integers(len(target.prompts)))]


def names_target(text: str, target: Target) -> bool:
    """Whether `text` contains one of the target's names as whole words."""
    return mentions(text, target.names)
