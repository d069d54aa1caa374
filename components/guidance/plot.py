"""What training looked like: the last losses, and a figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from components.guidance.train import GuidanceStep

TERMS = ("target_loss", "uncond_loss", "retain_loss", "closed_form_loss")


def last_losses(steps: Sequence[GuidanceStep]) -> dict[str, float]:
    """Means over the last tenth of training of the terms that it had; empty without a step."""
    tail = steps[-max(1, len(steps) // 10) :]
    means = {name: float(np.mean([getattr(s, name) for s in tail])) for name in TERMS} if tail else {}
    return {name: round(value, 6) for name, value in means.items() if value}


def plot_training(steps: Sequence[GuidanceStep]) -> plt.Figure:
    """The terms over training; the closed form's, known up to a constant, on a scale of its own."""
    figure, (axis, other) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name in last_losses(steps):
        (other if name == "closed_form_loss" else axis).plot(
            [s.step for s in steps], [getattr(s, name) for s in steps], label=name
        )
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    other.set(xlabel="step", title="closed form's objective, all prompts")
    axis.legend()
    return figure
