"""Measuring the base and every way to erase, gates that fail closed, and the report."""

from components.evaluate.gates import Gate, Verdict, judge_gates
from components.evaluate.images import Picture, Studio
from components.evaluate.metrics import (
    Metric,
    calibration_error,
    erased,
    likeness,
    mean_interval,
    paired_change,
    proportion,
    rate_of,
)

__all__ = [
    "Gate",
    "Metric",
    "Picture",
    "Studio",
    "Verdict",
    "calibration_error",
    "erased",
    "judge_gates",
    "likeness",
    "mean_interval",
    "paired_change",
    "proportion",
    "rate_of",
]
