"""Why a request flags a prompt: the position with the highest score, and what each feature adds to that score.

    L token positions, D = d_in, S features, N names of the target

    score = max over scored positions j and names n of  Σ_s w_ns z_js + b_n

The explanation lists the terms of the sum at the best position and name: `contributions` and `bias` add up to the score. A
prompt that contains a listed name of the target is flagged at any score; such positions are marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from components.diffusion.towers import Towers
from components.filter.artifact import RequestFilter
from components.filter.edit import codes, evidence, find_target
from components.filter.scores import position_scores
from components.filter.targets import TargetNames
from components.filter.text import Names, positions


class TokenScore(NamedTuple):
    """One scored position of a prompt."""

    position: int
    token: str
    """Its text, as the tokenizer has it, without the mark of a word's end."""
    score: float
    """The request's logistic score there."""
    names_target: bool
    """Whether a name of the target ends there, which flags the prompt at any score."""


class Contribution(NamedTuple):
    """What one feature adds to the score."""

    latent: int
    """Index into the SAE's latents."""
    amount: float
    """weight · code: below 0 it speaks against the target."""
    own: bool
    """A feature of the target; otherwise it is evidence only, and never edited."""


class Explanation(NamedTuple):
    """What one request saw in one prompt."""

    request: str
    score: float
    threshold: float
    position: int
    """Of the best score."""
    token: str
    """At that position."""
    name: str
    """The target's name whose row of the weights gave the score, empty where the artifact lists no names."""
    bias: float
    """That row's."""
    contributions: tuple[Contribution, ...]
    """Of every feature that fires there, the largest first, by absolute value."""
    positions: tuple[TokenScore, ...]
    """All positions that flag the prompt, by their score or as a name, in its order; empty when none does."""
    names: tuple[str, ...] = ()
    """Every name that text has found, with the words in which it stands."""

    @property
    def flagged(self) -> bool:
        """Whether the request flags the prompt, as `FilteredTextEncoder` decides it."""
        return bool(self.positions)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        parts = {"contributions": self.contributions, "positions": self.positions}
        return self._asdict() | {key: [part._asdict() for part in listed] for key, listed in parts.items()}

    def lines(self, *, top: int = 5) -> list[str]:
        """For people: where it is seen and by which name, then the sum that gives the score, `top` features by name."""
        listed = ", ".join(
            f"{at.position} {at.token!r} ({'a name, ' if at.names_target else ''}{at.score:.2f})"
            for at in self.positions
        )
        name = f", by the name {self.name!r}" if self.name else ""
        terms = [f"{c.amount:+.2f} latent {c.latent}{'' if c.own else ' (context)'}" for c in self.contributions[:top]]
        rest = self.contributions[top:]
        terms += [f"{sum(c.amount for c in rest):+.2f} {len(rest)} others"] if rest else []
        return [
            *self.names,
            f"best at position {self.position} {self.token!r}{name}; flagged at {listed or 'none'}",
            f"{self.score:.2f} = {self.bias:.2f} bias {' '.join(terms)}",
        ]


def explain(
    hidden: torch.Tensor,  # (1, L, D) residual stream of one prompt
    input_ids: torch.Tensor,  # (1, L)
    scored: torch.Tensor,  # (1, L) bool
    item: RequestFilter,
    *,
    request: str,  # its id
    tokens: Sequence[str],  # (L,) text of each position
    names: Sequence[str] = (),  # (N,) of the target, in the order of the weights' rows
    named: torch.Tensor
    | None = None,  # (1, L) bool: where text has found a name; by default where the listed tokens are
) -> Explanation:
    """The score of one request for one prompt, taken apart at its best position; flagged or not."""
    code = codes(hidden, item)  # (1, L, S)
    named = find_target(input_ids, item) if named is None else named
    scores = evidence(code, named, item).masked_fill(~scored, float("-inf"))[0]  # (L,)
    found = position_scores(code, item.weights, item.bias).masked_fill(~scored, float("-inf"))[0]
    best = int(found.argmax())
    row = int((code @ item.weights.T + item.bias)[0, best].argmax())
    amounts = item.weights[row] * code[0, best]  # (S,)
    order = amounts.abs().argsort(descending=True, stable=True).tolist()
    return Explanation(
        request=request,
        score=float(found[best]),
        threshold=float(item.decision_threshold),
        position=best,
        token=tokens[best],
        name=names[row] if names else "",
        bias=float(item.bias[row]),
        contributions=tuple(
            Contribution(int(item.features[s]), float(amounts[s]), bool(item.own[s] > 0))
            for s in order
            if float(amounts[s]) != 0
        ),
        positions=tuple(
            TokenScore(int(j), tokens[int(j)], float(found[j]), bool(named[0, j]))
            for j in (scores >= item.decision_threshold).nonzero()[:, 0]
        ),
    )


def explain_prompt(
    prompt: str,
    towers: Towers,
    filters: Mapping[str, RequestFilter],
    names: Mapping[str, Sequence[str]],
    targets: Mapping[str, TargetNames] | None = None,
) -> dict[str, Explanation]:
    """Every request's `Explanation` of one prompt, by request id, flagged or not; `names` by request id, as far as known.

    With `targets` names are found in the prompt's text, as `Eraser` finds them; a request that is not among them lists tokens.
    """
    encoded, tokenizer = towers.tokenize([prompt]), towers.first.tokenizer
    hidden = towers.stream(encoded).float().cpu()
    tokens = [token.removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(encoded.input_ids[0].tolist())]
    index = Names(targets or {})
    hits = index.find(prompt)
    named = dict(zip(index.requests, positions(tokenizer, [prompt], [hits], index.requests).unbind(-1), strict=True))
    return {
        request: explain(
            hidden,
            encoded.input_ids,
            encoded.scored,
            item,
            request=request,
            tokens=tokens,
            names=names.get(request, ()),
            named=named.get(request),
        )._replace(names=tuple(hit.reason(prompt) for hit in hits if hit.request == request))
        for request, item in filters.items()
    }
