"""What the artifact says of a target in text."""

from __future__ import annotations

from typing import NamedTuple


class TargetNames(NamedTuple):
    """What text says of one request's target."""

    forms: tuple[str, ...]
    """Its names, with their plurals, in the request's languages, and its emoji."""
    shields: tuple[str, ...] = ()
    """Longer names of other things that hold one of the target's, and words of their own one slip away: there the score decides."""
    languages: tuple[str, ...] = ("en",)
    """Whose real words are no slips."""
