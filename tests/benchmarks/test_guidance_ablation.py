import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.guidance_ablation import VARIANTS, largest_drift, look, plot, request_of, settings_of
from components.common.config import load_params
from components.requests import Request


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_changes_what_it_says_and_nothing_else(name):
    """Each variant is valid, and differs from params.yaml in the keys that it names."""
    base = load_params().guidance
    found = settings_of(base, VARIANTS[name]).model_dump()
    changed = {key for key, value in base.model_dump().items() if found[key] != value}

    request = Request(target="cat", kind="object", anchor="dog", neighbours=("lion",))
    erased = request_of(request, VARIANTS[name])

    assert changed == set(VARIANTS[name]) - {"anchor"}
    assert erased == (request.model_copy(update={"anchor": ""}) if "anchor" in VARIANTS[name] else request)
    assert (found["steps"], found["lr"]) == (
        max(1, round(base.steps * VARIANTS[name].get("steps", 1))),
        base.lr * VARIANTS[name].get("lr", 1),
    )


def test_plot_has_a_point_a_variant():
    """The drift that is plotted is the worst bucket, and the legend says what each variant erases."""
    record = {
        "ua": {"value": 0.9},
        "ssim_unrelated": {"value": 0.9, "low": 0.8, "high": 1.0},
        "uncond_drift": {"0-200": {"value": 0.01}, "200-400": {"value": 0.03}},
    }
    figure = plot({"a": record, "b": record})

    assert largest_drift(record) == 0.03
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a (UA 0.90)", "b (UA 0.90)"]
    plt.close(figure)


def test_grid_names_the_row_of_each_variant():
    """Rows stand in the order of the mapping, each labelled at its middle."""
    rows = {name: np.full((64, 128, 3), level, np.uint8) for level, name in enumerate(("base", "a", "b"))}
    figure = look(rows)
    (axis,) = figure.axes
    shown = np.asarray(axis.get_images()[0].get_array())

    assert [(t.get_text(), at) for t, at in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)] == [
        ("base", 32), ("a", 96), ("b", 160),
    ]  # fmt: skip
    assert [shown[at, 5, 0] for at in (32, 96, 160)] == [0, 1, 2]
    plt.close(figure)
