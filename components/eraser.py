"""The eraser: filter and adapters acting on one pipeline, composed in this one place.

    B prompts, R requests, H and W pixels

    base      the stock pipeline
    filter    prompts are edited where a filter flags them; no adapter acts
    guidance  the adapters act on everything, summed; no prompt is edited
    summed    both: prompts are edited where flagged, and the adapters act on everything
    gated     prompts are edited where flagged, and each adapter acts from its own threshold on, which is lower than the filter's

`gated` is the default: the adapters are a second line behind the filters, and few act on an unrelated prompt, however many
requests there are (docs/decisions/0029). A prompt that no request flags is encoded as the stock encoders do, to the bit. An
adapter whose request has no filter acts on every prompt. The unconditional and the negative prompt always go through the stock
encoders (invariant 4).

What the filters saw is returned, never remembered. Any number of threads may read prompts at once; drawing takes turns,
since the adapters' scales are a state of the one U-Net. The U-Net is guarded: whatever else calls it, the same pipeline with a
prompt in words or another one made of its parts, is refused (components/diffusion/guard.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from components.common.errors import ArtifactError, UserError
from components.common.paths import FILTER, GUIDANCE
from components.common.sections import PARAMS, read_section
from components.common.variants import DEFAULT, VARIANTS, Variant
from components.diffusion.conditioning import Conditioning, joined
from components.diffusion.device import accelerator_device
from components.diffusion.folder import check_folder
from components.diffusion.guard import Guard
from components.diffusion.load import load_pipeline
from components.diffusion.params import BaseParams
from components.diffusion.sampling import sample
from components.diffusion.text import towers_of
from components.filter.artifact import RequestFilter, open_filters
from components.filter.encoder import Decision, FilteredTextEncoder
from components.filter.normal import check_prompt
from components.filter.targets import TargetNames
from components.filter.text import Names, positions
from components.guidance.adapters import check_adapters, load_adapters, use_adapters
from components.guidance.gating import gate_adapters
from components.requests.requests import REQUESTS, Request, load_requests

_FILTERED, _ADAPTED = ("filter", "summed", "gated"), ("guidance", "summed", "gated")
_BATCH = 256  # prompts encoded at once


class Erased(NamedTuple):
    """All that drawing B prompts takes, and what was decided about them."""

    prompts: tuple[str, ...]
    cond: Conditioning
    """Of B prompts."""
    uncond: Conditioning
    """Of one, the empty or negative prompt."""
    decision: Decision
    """Of the filters that acted, one row a prompt."""
    acting: dict[str, torch.Tensor]
    """By request: (B,) bool, the prompts on which its adapter acts."""
    everywhere: bool
    """Whether adapters act on the empty prompt too."""

    def flagged(self) -> list[tuple[str, ...]]:
        """For each prompt the requests whose filter flags it."""
        return _names(self.decision.requests, self.decision.flagged)

    def adapters(self) -> list[tuple[str, ...]]:
        """For each prompt the requests whose adapter acts on it."""
        none = torch.zeros(len(self.prompts), 0, dtype=torch.bool)
        return _names(tuple(self.acting), torch.stack(list(self.acting.values()), 1) if self.acting else none)

    def take(self, rows: Sequence[int]) -> Erased:
        """Some of the prompts."""
        index = torch.tensor(list(rows), dtype=torch.int64)
        seen = self.decision
        return self._replace(
            prompts=tuple(self.prompts[i] for i in rows),
            cond=self.cond.rows(index),
            decision=seen._replace(scores=seen.scores[index], flagged=seen.flagged[index]),
            acting={name: mask[index] for name, mask in self.acting.items()},
        )

    def for_pipeline(self) -> dict[str, torch.Tensor]:
        """What a pipeline of diffusers takes in place of prompt and negative prompt."""
        uncond = self.uncond.expand(len(self.prompts))
        given = {"prompt_embeds": self.cond.states, "negative_prompt_embeds": uncond.states}
        if self.cond.pooled is not None and uncond.pooled is not None:
            given |= {"pooled_prompt_embeds": self.cond.pooled, "negative_pooled_prompt_embeds": uncond.pooled}
        return given


class Drawing(NamedTuple):
    """One image, and which requests flagged its prompt."""

    image: Image.Image
    flagged: tuple[str, ...]


class Eraser:
    """A pipeline with the filters and adapters of some requests."""

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401 - a pipeline of SD 1.x, 2.x or XL
        filters: Mapping[str, RequestFilter],
        hookpoint: str | Sequence[str],  # of each text encoder
        adapters: Mapping[str, Path],
        *,
        targets: Mapping[str, TargetNames] | None = None,
        guidance_scale: float = 7.5,
        solver_steps: int = 25,
        guard: bool = True,  # False where passes of the base itself are wanted too, as in an evaluation
    ) -> None:
        """Loads the adapters, by request, into `pipe` and leaves them off; `ArtifactError` for an altered one.

        `targets` says what text finds of each request that has a filter; without them names are found in tokens alone.
        """
        self.names = Names({name: item for name, item in (targets or {}).items() if name in filters})
        self.pipe, self.filters = pipe, dict(filters)
        hookpoints = [hookpoint] if isinstance(hookpoint, str) else hookpoint
        self.towers = towers_of(pipe, hookpoints if filters else None)
        self._guard = Guard(pipe.unet) if guard else None
        self.guidance_scale, self.solver_steps = guidance_scale, solver_steps
        load_adapters(pipe, adapters)
        self.adapters = tuple(adapters)
        self.requests = tuple(dict.fromkeys([*self.filters, *self.adapters]))
        self._encoders: dict[tuple[str, ...], FilteredTextEncoder] = {}
        self._drawing, self._drawer = Lock(), 0

    @classmethod
    def open(
        cls,
        project: Path | str = ".",
        *,
        variant: Variant | None = None,
        requests: Sequence[str] | None = None,
        device: torch.device | None = None,
        guard: bool = True,
    ) -> Self:
        """The base, filters and adapters of a project's working tree, for `requests`, or for all in its requests.yaml.

        With `variant`, only what that one takes. On the accelerator, if there is one and `device` names no other.
        `UserError` or `ArtifactError` for what is missing, altered, or was trained on another base.
        """
        root = Path(project)
        base = read_section("base", BaseParams, root / PARAMS)
        return cls.assemble(
            root / base.path, base, load_requests(root / REQUESTS), root / FILTER, root / GUIDANCE,
            variant=variant, requests=requests, device=device, guard=guard,
        )  # fmt: skip

    @classmethod
    def assemble(
        cls,
        pipeline: Path,
        base: BaseParams,
        listed: Mapping[str, Request],
        filter_folder: Path,
        adapters_folder: Path,
        *,
        variant: Variant | None = None,
        requests: Sequence[str] | None = None,
        device: torch.device | None = None,
        guard: bool = True,
    ) -> Self:
        """As `open`, of parts that lie anywhere: the pipeline's folder, the filter's, and one with a folder for each adapter."""
        if unknown := [i for i in requests or () if i not in listed]:
            raise UserError(f"request {unknown[0]!r} is not in requests.yaml", f"use some of: {', '.join(listed)}")
        wanted = {i: request for i, request in listed.items() if requests is None or i in requests}
        filtered, adapted = (variant is None or variant in variants for variants in (_FILTERED, _ADAPTED))
        guided = [i for i, request in wanted.items() if "guidance" in request.channels and adapted]
        adapters = {i: adapters_folder / i for i in guided}
        check_folder(pipeline)
        check_adapters(adapters, pipeline)
        found = open_filters(filter_folder, pipeline, base.hookpoints) if filtered else None
        chosen = {i: item for i, item in found.filters.items() if i in wanted} if found else {}
        if filtered:
            check_filters(chosen, wanted)
        pipe = load_pipeline(pipeline, device or accelerator_device())
        return cls(
            pipe, chosen, base.hookpoints, adapters, targets=found.targets if found else {}, guard=guard,
            guidance_scale=base.guidance_scale, solver_steps=base.solver_steps,
        )  # fmt: skip

    def read(
        self,
        prompts: Sequence[str],
        *,
        variant: Variant = DEFAULT,
        requests: Sequence[str] | None = None,
        negative: str | None = None,
    ) -> Erased:
        """Encodes each prompt once and says what acts on it; `requests` names those that act, by default all.

        Without a negative prompt the unconditional branch is the stock pipeline's: the empty prompt, or zeros in SDXL.
        `UserError` for an unknown variant or request, for a prompt that no tokenizer can read, and for text encoders that are no
        longer those of the filters.
        """
        if variant not in VARIANTS:
            raise UserError(f"variant {variant!r} is unknown", f"use one of: {', '.join(VARIANTS)}")
        for prompt in prompts:
            check_prompt(prompt)
        wanted = self.requests if requests is None else tuple(requests)
        if unknown := [name for name in wanted if name not in self.requests]:
            raise UserError(f"request {unknown[0]!r} is unknown", f"use some of: {', '.join(self.requests)}")
        named = tuple(name for name in wanted if name in self.filters and variant in _FILTERED)
        loaded = [name for name in wanted if name in self.adapters and variant in _ADAPTED]
        cond, decision = self._encode(prompts, named)
        everyone = torch.ones(len(prompts), dtype=torch.bool)
        columns = self._gates(decision) if variant == "gated" else {}
        return Erased(
            tuple(prompts),
            cond,
            self.towers.unconditional(negative),
            decision,
            {name: columns.get(name, everyone) for name in loaded},
            everywhere=variant != "gated",
        )

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], requests: tuple[str, ...]) -> tuple[Conditioning, Decision]:
        """(conditioning, decision) under the filters of `requests`; each distinct prompt goes through the encoders once."""
        unique = list(dict.fromkeys(prompts))
        order = torch.tensor([unique.index(p) for p in prompts], dtype=torch.int64)
        if not requests:
            none = torch.zeros(len(prompts), 0)
            return self.towers.encode(unique).rows(order), Decision((), none, none.bool())
        self.towers.check_unchanged()
        if requests not in self._encoders:
            filters = {name: self.filters[name] for name in requests}
            self._encoders[requests] = FilteredTextEncoder(self.towers, filters)
        encoded, named, host = self.towers.tokenize(unique), self._named(unique, requests), torch.device("cpu")
        rows = [slice(start, start + _BATCH) for start in range(0, len(unique), _BATCH)]
        encoder = self._encoders[requests]
        parts = [encoder.encode(encoded.rows(part), None if named is None else named[part]) for part in rows]
        decisions = [decision for _, decision in parts]
        scores, flagged = (torch.cat([getattr(d, field).cpu() for d in decisions]) for field in ("scores", "flagged"))
        cond = joined([each.to(host) for each, _ in parts])
        return cond.rows(order), Decision(requests, scores[order], flagged[order])

    def _gates(self, decision: Decision) -> dict[str, torch.Tensor]:
        """By request with a filter: (B,) bool, the prompts on which its adapter acts when gated."""
        return {
            name: flagged | (scores >= self.filters[name].gate_threshold.to(scores.device))
            for name, scores, flagged in zip(
                decision.requests, decision.scores.unbind(1), decision.flagged.unbind(1), strict=True
            )
        }

    def _named(self, prompts: Sequence[str], requests: tuple[str, ...]) -> torch.Tensor | None:
        """(B, L, R) at which tokens text finds a name; None where some request says nothing of its names in text."""
        if not set(requests) <= set(self.names.requests):
            return None
        return positions(
            self.towers.first.tokenizer, prompts, [self.names.find(prompt) for prompt in prompts], requests
        )

    @contextmanager
    def acting(self, erased: Erased, *, images_per_prompt: int = 1) -> Iterator[None]:
        """Within the block the U-Net draws these prompts with the adapters that act on them; other threads wait.

        `UserError` inside another such block of this thread, which would end with the adapters switched off. For a pipeline call inside the block: `pipe(**erased.for_pipeline(), num_images_per_prompt=images_per_prompt)`.
        """
        masks = {name: mask.repeat_interleave(images_per_prompt) for name, mask in erased.acting.items() if mask.any()}
        drawn = erased.cond.map(lambda part: part.repeat_interleave(images_per_prompt, 0))
        adapted = use_adapters(self.pipe, masks) if erased.everywhere else gate_adapters(self.pipe, masks)
        with self._turn(), self._allow(drawn), adapted:
            yield

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """Within the block this thread may ask the U-Net anything, as the base; no adapter acts, and other threads wait."""
        with self._turn(), self._allow(None):
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Holds the U-Net for this thread; `UserError` if it holds it already."""
        if self._drawer == get_ident():
            raise UserError("this eraser is drawing already", "leave the block before you draw something else")
        with self._drawing:
            self._drawer = get_ident()
            try:
                yield
            finally:
                self._drawer = 0

    def _allow(self, cond: Conditioning | None) -> AbstractContextManager[None]:
        return nullcontext() if self._guard is None else self._guard.allow(cond)

    def paint(
        self, erased: Erased, seeds: Sequence[int], *, steps: int | None = None, batch: int = 32
    ) -> Iterator[tuple[range, np.ndarray]]:
        """One image of each prompt, from its own seed: yields (rows, images (b, H, W, 3) uint8) batch by batch."""
        for start in range(0, len(erased.prompts), batch):
            rows = range(start, min(start + batch, len(erased.prompts)))
            part = erased.take(rows)
            with self.acting(part):
                images = sample(
                    self.pipe, part.cond, part.uncond, [seeds[i] for i in rows],
                    steps=steps or self.solver_steps, guidance_scale=self.guidance_scale, batch=batch,
                )  # fmt: skip
            yield rows, images

    def draw(self, prompt: str, *, seed: int = 0, steps: int | None = None, **how: Any) -> Drawing:  # noqa: ANN401 - as `read`
        """One image of `prompt`; further arguments are those of `read`."""
        erased = self.read([prompt], **how)
        ((_, images),) = self.paint(erased, [seed], steps=steps)
        return Drawing(Image.fromarray(images[0]), erased.flagged()[0])


def check_filters(filters: Mapping[str, RequestFilter], requests: Mapping[str, Request]) -> None:
    """`ArtifactError` for a request of the channel `filter` that the filters lack: its prompts would pass unfiltered."""
    for request_id, request in requests.items():
        if "filter" in request.channels and request_id not in filters:
            raise ArtifactError(f"there is no filter of request {request_id}", "fit it: expunge run features")


def _names(requests: Sequence[str], flags: torch.Tensor) -> list[tuple[str, ...]]:
    """For each row of flags (B, R) the requests that are flagged."""
    return [tuple(name for name, hit in zip(requests, row, strict=True) if hit) for row in flags.tolist()]
