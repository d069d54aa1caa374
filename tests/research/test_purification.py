from pathlib import Path

import numpy as np
import pytest

from components.collect.concepts import make_record
from components.diffusion.load import load_pipeline
from components.eraser import Eraser
from components.purify.purify import Purified
from components.requests.requests import Request, load_requests
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene
from components.worlds.openmoji.world import WORLD
from research.guidance import purification
from research.guidance.groups import MORE
from research.guidance.purification import anchored, held_out, measure_purification, prompt_of

BASE = Path(__file__).parents[2] / "assets" / "openmoji"
REQUESTS = load_requests(BASE.parents[1] / "requests.yaml") | MORE


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=lambda r: r.target)
def test_held_out_scenes_show_the_target(request_):
    """Sixteen scenes from seeds that no training used, every one with the target, and a prompt that names what is in it."""
    record = make_record("r", request_, WORLD)
    scenes = held_out(record, 16)

    assert len(set(scenes)) == 16
    assert all(s.seed >= HELD_OUT_SEEDS for s in scenes)
    assert all((s.style if record.is_style else s.concepts[0]) in record.labels for s in scenes)
    assert all(s.concepts[0] in prompt_of(s) for s in scenes)
    assert all(s.style in prompt_of(s) or s.style == "sticker" for s in scenes)


@pytest.mark.parametrize(
    ("request_", "scene", "expected"),
    [
        (MORE["x-weapon"], Scene(("dagger",), "neon", 5), Scene(("umbrella",), "neon", 5)),
        (Request(target="neon", kind="style", anchor="line art"), Scene(("owl",), "neon", 5), Scene(("owl",), "line art", 5)),
        (Request(target="cat", kind="object"), Scene(("cat",), "neon", 5), Scene(("cat",), "neon", 5)),
    ],
    ids=["category", "style", "no anchor"],
)  # fmt: skip
def test_anchored_scene_shows_the_anchor(request_, scene, expected):
    """The ideal that an adapter is compared with differs from the scene in what is erased, and in nothing else."""
    assert anchored(scene, make_record("r", request_, WORLD)) == expected


def test_without_an_adapter_the_erased_row_is_the_bases(monkeypatch):
    """An eraser with no adapter redraws the cat as the base does; the base prompted with the anchor draws the dog; the loop returns 25 dB."""
    eraser = Eraser(load_pipeline(BASE), {}, "encoder.layers.0", {}, guidance_scale=3.0)
    read, drawn = eraser.read, []

    def read_base(prompts, **how):
        drawn.append((prompts[0], how["variant"]))
        return read(prompts, variant="base")

    monkeypatch.setattr(eraser, "read", read_base)
    (cat,) = (r for r in REQUESTS.values() if r.target == "cat")
    judge = Judge.load(BASE / "judge")
    metrics, picture = measure_purification(eraser, judge, make_record("r", cat, WORLD), count=1)
    rows = np.split(picture, 5)

    assert [variant for _, variant in drawn] == ["base", "guidance", "base"]
    assert metrics["ua"] == metrics["ua_base"]
    assert np.array_equal(rows[2], rows[3])
    assert (metrics["anchor_rate"].value, metrics["anchor_rate_base"].value) == (0, 1)
    assert metrics["loop_psnr"].value >= 25


def test_without_an_anchor_nothing_is_drawn_twice(monkeypatch):
    """There is nothing to prompt the base with, so its own image is the ideal: one purification by the base, one by the adapter."""
    drawn = []

    def purified(_eraser, image, erased):
        drawn.append(erased)
        return Purified(image, image, image ^ 1)

    class Reads:
        def read(self, prompts, *, variant, requests):  # noqa: ARG002 - as the eraser
            """What would be drawn."""
            return (*prompts, variant)

    monkeypatch.setattr(purification, "purify", purified)
    record = make_record("r", Request(target="cat", kind="object"), WORLD)
    metrics, _ = measure_purification(Reads(), Judge.load(BASE / "judge"), record, count=2)

    assert [variant for _, variant in drawn] == 2 * ["base", "guidance"]
    assert metrics["anchor_rate"].n == 0
