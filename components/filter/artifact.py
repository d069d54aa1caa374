"""The filter on disk: for each request its features' rows of the SAE, its score, its thresholds and its replacement.

    S selected features, N names of the target, D = d_in, K = 4 position classes, M spellings of W tokens, V vocabulary

Only the rows of the selected features are stored: JumpReLU decides latent by latent, so they decide as the whole SAE does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from components.common.artifacts import fill_artifact, read_artifact
from components.common.errors import ArtifactError
from components.common.files import read_sidecar
from components.diffusion.encode import special_tokens
from components.diffusion.folder import TEXT_PARTS, check_made_for, part_digests
from components.diffusion.towers import Towers
from components.filter.targets import TargetNames

FORMAT = "expunge/filter"


class RequestFilter(NamedTuple):
    """All that detecting and editing one request takes."""

    features: torch.Tensor
    """(S,) int64: indices into the SAE's latents."""
    own: torch.Tensor
    """(S,) 1 for a feature of the target, 0 for a context feature, which is evidence only and never edited."""
    w_enc: torch.Tensor
    """(D, S)"""
    b_enc: torch.Tensor
    """(S,)"""
    latent_threshold: torch.Tensor
    """(S,) a latent's code is 0 at or below this (JumpReLU)."""
    w_dec: torch.Tensor
    """(S, D)"""
    b_dec: torch.Tensor
    """(D,)"""
    weights: torch.Tensor
    """(N, S) of the score, a row for each name."""
    bias: torch.Tensor
    """(N,) of the score."""
    decision_threshold: torch.Tensor
    """(): a prompt is flagged when the score of one of its positions reaches this."""
    directions: torch.Tensor
    """(K, D) what the edit adds at each class of positions; all zero for a request without an anchor."""
    gain: torch.Tensor = torch.tensor(0.0)
    """(): what the edit adds for each unit of an own feature's code, along its decoder row: 0 with an anchor, -1 without."""
    classes: torch.Tensor = torch.ones(4)
    """(K,) 1 for the position classes that are edited, 0 for the others."""
    gate_threshold: torch.Tensor = torch.tensor(float("inf"))
    """(): the request's adapter acts on a prompt from this score on, and wherever the prompt is flagged; -inf: on every prompt."""
    spellings: torch.Tensor = torch.zeros(0, 1, dtype=torch.int64)
    """(M, W) token patterns of the target's names and misspellings; a prompt that contains one is flagged at any score."""
    word_ends: torch.Tensor = torch.zeros(1, dtype=torch.bool)
    """(V,) tokens that end a word; one tensor, on disk and in memory, for all requests."""


class FilterSet(NamedTuple):
    """The filters of all requests, and what they were fitted on."""

    filters: dict[str, RequestFilter]
    """By request id."""
    hookpoints: tuple[str, ...]
    """Of each text encoder, in the order in which their residual streams are concatenated to D."""
    inputs: dict[str, str]
    """Digests of what they were made of, the base's text encoders and tokenizers among them."""
    targets: dict[str, TargetNames]
    """What text says of each request's target; none for an artifact that lists no forms."""


SHARED = "word_ends"
OWN_FIELDS = tuple(field for field in RequestFilter._fields if field != SHARED)


def write_filters(
    folder: Path,
    filters: Mapping[str, RequestFilter],
    *,
    towers: Towers,
    params: dict[str, object],
    inputs: dict[str, str],
    facts: dict[str, object],
) -> None:
    """Writes the filters into `folder`, which a `new_folder` block holds open."""
    tensors = {
        f"{request_id}.{field}": getattr(item, field) for request_id, item in filters.items() for field in OWN_FIELDS
    }
    if filters:
        tensors[SHARED] = next(iter(filters.values())).word_ends
    fill_artifact(
        folder,
        kind=FORMAT,
        tensors=tensors,
        params=params,
        inputs=inputs,
        facts=text_facts(towers) | {"requests": list(filters)} | facts,
    )


def text_facts(towers: Towers) -> dict[str, object]:
    """Hookpoint, EOS, padding and length of each tower, as its tokenizer has them; those of a single tower are not listed."""
    names = "hookpoint", "eos_token_id", "pad_token_id", "max_length"
    columns = zip(
        *((t.hookpoint, *special_tokens(t.tokenizer), t.tokenizer.model_max_length) for t in towers.all), strict=True
    )
    return {name: column[0] if len(column) == 1 else list(column) for name, column in zip(names, columns, strict=True)}


def read_filters(folder: Path) -> FilterSet:
    """The filters; `ArtifactError` for anything but what was written."""
    tensors, sidecar = read_artifact(folder, FORMAT)
    facts = sidecar["facts"]
    wanted = {f"{request_id}.{field}" for request_id in facts["requests"] for field in OWN_FIELDS}
    if missing := sorted(wanted - set(tensors)):
        raise ArtifactError(f"{folder} holds no {missing[0]}", "fit it with this version: expunge run features")
    filters = {
        request_id: RequestFilter(**{f: tensors[f"{request_id}.{f}"] for f in OWN_FIELDS}, word_ends=tensors[SHARED])
        for request_id in facts["requests"]
    }
    named = facts["hookpoint"]
    return FilterSet(
        filters, (named,) if isinstance(named, str) else tuple(named), sidecar["inputs"], read_targets(folder)
    )


def open_filters(folder: Path, base: Path, hookpoints: Sequence[str]) -> FilterSet:
    """The filters, for the model in folder `base` read at `hookpoints`, before any of it is loaded.

    `ArtifactError` if they were fitted on other text encoders or tokenizers, or elsewhere in them.
    """
    found = read_filters(folder)
    check_made_for(found.inputs, part_digests(base, TEXT_PARTS), f"the filter in {folder}", base)
    if found.hookpoints != tuple(hookpoints):
        fact = f"the filter in {folder} was fitted at {', '.join(found.hookpoints)}, not at {', '.join(hookpoints)}"
        raise ArtifactError(fact, "fit it again: expunge run features")
    return found


def read_targets(folder: Path) -> dict[str, TargetNames]:
    """What text says of each request's target, by request id; none for an artifact that lists no forms."""
    listed = read_sidecar(folder, FORMAT)["facts"].get("text", {})
    return {
        request_id: TargetNames(*(tuple(item[field]) for field in TargetNames._fields))
        for request_id, item in listed.items()
    }


def read_names(folder: Path) -> dict[str, list[str]]:
    """The target's names by request id, in the order of the rows of its weights, for the requests that list them."""
    detail = read_sidecar(folder, FORMAT)["facts"].get("detail", {})
    return {request_id: item["names"] for request_id, item in detail.items() if "names" in item}
