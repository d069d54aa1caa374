"""The picture that stands beside the filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np


def plot_roc(path: Path, curves: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draws one ROC for each target, with a logarithmic false-positive axis."""
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(np.maximum(curve["fpr"], 1e-5), curve["tpr"], drawstyle="steps-post", label=name)
    axes.set(xscale="log", xlabel="false-positive rate", ylabel="true-positive rate", xlim=(1e-5, 1), ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)
