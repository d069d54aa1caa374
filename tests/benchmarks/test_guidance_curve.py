import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from benchmarks.guidance_curve import TERMS, curve, objective, plot
from components.common.config import load_params
from components.diffusion import encode
from components.guidance import Lesson, cache_trajectories

PARAMS = load_params().guidance.model_copy(
    update={"rank": 2, "steps": 5, "batch": 2, "solver_steps": 2, "precision": "no", "start": "random"}
)


@pytest.fixture
def lesson(tiny_pipe):
    def states(*prompts):
        return encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)

    target, anchor, retain, empty = (
        states("a cat", "neon cat"),
        states("a dog", "neon dog"),
        states("a car"),
        states(""),
    )
    erase = cache_trajectories(tiny_pipe, target, anchor, empty, PARAMS, scope="erase")
    keep = cache_trajectories(tiny_pipe, retain, retain, empty, PARAMS, scope="retain")
    return Lesson(erase, keep, target, retain, empty)


def test_objective_of_the_base(tiny_pipe, lesson):
    """The frozen model has moved nothing, so that only the way from target to anchor is left; computed by hand, in one batch."""
    found = objective(tiny_pipe.unet, lesson, PARAMS, batch=3)
    erase = lesson.erase
    with torch.no_grad():
        said = tiny_pipe.unet(erase.latents, erase.timesteps, lesson.target[erase.prompt]).sample

    assert found["uncond"] == pytest.approx(0, abs=1e-10)
    assert found["retain"] == pytest.approx(0, abs=1e-10)
    assert found["surgical"] == pytest.approx((said - erase.cond).square().mean().item(), rel=1e-3)
    assert found["total"] == pytest.approx(found["surgical"], rel=1e-3)


def test_curve_has_its_ends(tiny_pipe, lesson):
    """Points before the first step, every second one, and after the last; training moves what is measured."""
    rows = [("a cat", "a dog", "target", "select", True), ("an owl", "", "retain", "select", False)]
    seen = pd.DataFrame(rows, columns=["prompt", "counterpart", "role", "split", "carries"])
    points = list(curve(tiny_pipe, "r", lesson, lesson, seen, PARAMS, every=2))

    assert [p["step"] for p in points] == [0, 2, 4, 5]
    assert points[-1]["retain"] > points[0]["retain"]


def test_plot_marks_the_least():
    """A panel a term, and the dotted line where the weighted sum is least."""
    points = [{"step": s, **dict.fromkeys(TERMS, 1.0 + abs(s - 2))} for s in range(5)]
    figure = plot(points)

    assert len(figure.axes) == len(TERMS)
    assert figure.axes[0].lines[1].get_xdata()[0] == 2
    plt.close(figure)
