"""Section `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from components.common.sections import Section, Some
from components.common.variants import VARIANTS, Variant

METRICS: Mapping[str, tuple[Variant, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("ua", "anchor_rate", "ira", "cra", "ssim_unrelated", "clip_unrelated"), VARIANTS),
        **dict.fromkeys(("auroc", "tpr", "fpr", "fpr_neighbours", "fpr_traffic", "passthrough_max_abs"), ("filter",)),
        "uncond_drift": ("guidance",),
    }
)
"""By metric that an evaluation takes, the variants of which it is taken."""


def check_metric(key: str, metric: str) -> tuple[Variant, ...]:
    """The variants of which `metric` is taken; a name that no evaluation writes raises ValueError, which names `key`."""
    if metric not in METRICS:
        raise ValueError(f"{key}={metric!r} is not among the metrics ({', '.join(METRICS)})")
    return METRICS[metric]


class SizeParams(Section):
    """How many images an evaluation draws."""

    templates: int = Field(gt=0)
    """Target prompts for each request."""
    seeds: int = Field(gt=0)
    """Images of each prompt."""
    retain: int = Field(gt=0)
    """Prompts that show concepts and styles to retain, shared by all requests."""


class GateParams(Section):
    """One line that a candidate must not cross."""

    metric: str
    """A key of metrics.json below a request and a variant, such as ua."""
    variant: Variant
    """Which model the metric is taken of."""
    direction: Literal["at_least", "at_most"]
    """On which side of the threshold a candidate passes."""
    threshold: float
    """The line, in the metric's unit; with `relative_to_base` the allowed difference to base."""
    relative_to_base: bool = False
    """Compare the difference to the base model instead of the value."""
    n: int = Field(gt=0)
    """Fewest observations that count as evidence."""

    @model_validator(mode="after")
    def _is_measured(self) -> GateParams:
        of = check_metric("metric", self.metric)
        if self.variant not in of:
            raise ValueError(f"metric={self.metric!r} is taken of {', '.join(of)}, not of variant={self.variant!r}")
        return self


class EvaluateParams(Section):
    """Measuring the variants."""

    size: str
    """Which of `sizes` to draw."""
    sizes: dict[str, SizeParams]
    """`quick` for make run, `full` for a promotion."""
    batch: int = Field(gt=0)
    """Images drawn at once."""
    seed: int = Field(ge=0)
    gates: Some[GateParams]

    @model_validator(mode="after")
    def _size_is_known(self) -> EvaluateParams:
        if self.size not in self.sizes:
            raise ValueError(f"evaluate.size={self.size!r} is not among evaluate.sizes ({', '.join(self.sizes)})")
        return self
