"""A request's features: contrastive selection, a logistic score, a calibrated threshold, and what to draw instead."""

from components.features.artifact import RequestFilter, read_filters, read_names, write_filters
from components.features.directions import POSITION_CLASSES, position_classes, replacement_directions
from components.features.scores import (
    Roc,
    auroc,
    conformal_threshold,
    context_features,
    fit_score,
    position_scores,
    prompt_scores,
    roc,
    select_features,
    strictest_threshold,
)

__all__ = [
    "POSITION_CLASSES",
    "RequestFilter",
    "Roc",
    "auroc",
    "conformal_threshold",
    "context_features",
    "fit_score",
    "position_classes",
    "position_scores",
    "prompt_scores",
    "read_filters",
    "read_names",
    "replacement_directions",
    "roc",
    "select_features",
    "strictest_threshold",
    "write_filters",
]
