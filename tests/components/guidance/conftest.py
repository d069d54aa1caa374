"""One request small enough to train in a second: a cat that becomes a dog, on the tiny pipeline."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from diffusers import UNet2DConditionModel

from components.collect.record import RequestRecord
from components.guidance import recipe
from components.guidance.params import GuidanceParams
from components.guidance.training_set import prepare
from components.requests.requests import Request

ROWS = [
    ("a cat", "a dog", "target", "select", True, ("cat",)),
    ("neon cat on a car", "neon dog on a car", "mixed", "select", True, ("cat", "car")),
    ("an owl", "", "retain", "select", False, ("owl",)),
    ("a car", "", "neighbour", "calibrate", False, ("car",)),
    ("a red cat", "a red dog", "target", "evaluate", True, ("cat",)),
]


@pytest.fixture
def params() -> GuidanceParams:
    """Ten steps in float32; the rest as it ships."""
    return GuidanceParams(
        rank=4, steps=10, retain_weight=80.0, hold="null-space", precision="no", gradient_checkpointing=False, seed=0
    )


@pytest.fixture
def record() -> RequestRecord:
    """The request as the stage `concepts` writes it down."""
    names = dict.fromkeys(("train", "select", "calibrate", "evaluate"), ("cat",))
    return RequestRecord(
        id="r", request=Request(target="cat", kind="object", anchor="dog"), names=names, misspellings=(),
        labels=("cat",), is_style=False, avoid=("cat", "dog"),
    )  # fmt: skip


@pytest.fixture
def table() -> Callable[..., pd.DataFrame]:
    """(more rows, anchor) to the prompts of the request; without the anchor no prompt has a counterpart."""

    def make(*more, anchor=True):
        columns = ["prompt", "counterpart", "role", "split", "names_target", "concepts"]
        rows = pd.DataFrame([*ROWS, *more], columns=columns)
        rows = rows.assign(pair=rows["concepts"].map(len) > 1, style="")
        rows["name_used"] = ["cat" if named else "" for named in rows["names_target"]]
        return rows if anchor else rows.assign(counterpart="")

    return make


@pytest.fixture(autouse=True)
def small_recipe(monkeypatch):
    """The recipe with few and short trajectories and small batches; returns a function that sets more of it."""
    small = {
        "TRAJECTORIES": 4, "RETAIN_TRAJECTORIES": 8, "SOLVER_STEPS": 3, "RETAIN_SOLVER_STEPS": 2, "BATCH": 4, "RETAIN_BATCH": 4,
    }  # fmt: skip

    def change(**more):
        for name, value in more.items():
            monkeypatch.setattr(recipe, name, value)

    change(**small)
    return change


@pytest.fixture
def data(tiny_pipe, record, table, params):
    """The training set of the request."""
    return prepare(tiny_pipe, record, table(), params, guidance_scale=3.0)


@pytest.fixture
def renew(tiny_pipe):
    """What gives the pipeline the U-Net that it had, without an adapter."""
    state = {key: value.clone() for key, value in tiny_pipe.unet.state_dict().items()}

    def fresh():
        unet = UNet2DConditionModel.from_config(tiny_pipe.unet.config)
        unet.load_state_dict(state)
        tiny_pipe.unet = unet.eval().requires_grad_(False)
        return state

    return fresh
