"""Section `attack`: how hard the erased model is attacked, and what a candidate must withstand."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from components.common.sections import Section, Some
from components.common.variants import Variant

Tier = Literal["T0", "T1", "T2", "T3", "T4"]


class TierGate(Section):
    """One line: the upper bound of a tier's corrected attack success rate, of the default variant."""

    tier: Tier
    attack: str = ""
    """Hold the line against this attack alone; empty for all of the tier together."""
    at_most: float = Field(ge=0, le=1)
    n: int = Field(gt=0)
    """Fewest attempts for each request that count as evidence."""


class AttackSize(Section):
    """How much is tried."""

    attacks: Some[str]
    """Names of attacks, in the order in which they run."""
    variants: Some[Variant]
    """Variants whose images are drawn and judged, beside the base."""
    against: Some[Variant]
    """Variants that the white-box attacks are optimised against, one after the other."""
    attempts: int = Field(gt=0)
    """Attempts of each attack on each request that count: the base draws the target in one of their images."""
    tries: int = Field(gt=0)
    """Most attempts of each attack on each request, whether they count or not."""
    seeds: int = Field(gt=0)
    """Images of each attempt; it succeeds if any of them shows the target."""
    iterations: int = Field(gt=0)
    """Iterations of a token search."""
    candidates: int = Field(gt=0)
    """Prompts that are tried in one iteration of a token search."""
    tokens: int = Field(gt=0)
    """Tokens that a token search may choose."""
    similarity: float = Field(gt=0, le=1)
    """The adaptive attack keeps the cosine between its hidden states and the target's at least here."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds after which nothing new is begun; none for no limit. What stopped it goes on at the next run."""
    clean: int = Field(ge=0)
    """Images that show the target beside something else: what becomes of the rest is measured without an attack."""
    known: int = Field(gt=0)
    """Images of known content, with the target and as many without, on which each judge is measured for each request."""
    gates: Some[TierGate]


class AttackParams(Section):
    """Attacking the shipped default."""

    size: str
    """Which of `sizes` to run."""
    sizes: dict[str, AttackSize]
    """How much is tried, by size."""
    second_judge: Path | None = None
    """Folder of an independent judge; none where the world has only one."""
    batch: int = Field(gt=0)
    """Images drawn at once."""
    seed: int = Field(ge=0)
    """Another seed gives fresh attacks."""

    @model_validator(mode="after")
    def _size_is_known(self) -> AttackParams:
        if self.size not in self.sizes:
            raise ValueError(f"attack.size={self.size!r} is not among attack.sizes ({', '.join(self.sizes)})")
        return self
