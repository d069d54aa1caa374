import numpy as np
import pytest

from components.collect.concepts import known_targets
from components.common.sections import load_params
from components.evaluate.images import Studio
from components.evaluate.params import EvaluateParams
from components.requests.requests import Request, load_requests
from components.worlds.openmoji.judge import Judge
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene
from research.guidance.purification import anchored, held_out, measure_purification, prompt_of

WEAPON = Request(target="weapon", kind="category", anchor="umbrella", neighbours=("key",))


@pytest.mark.parametrize("request_", [*load_requests().values(), WEAPON], ids=lambda r: r.target)
def test_held_out_scenes_show_the_target(request_):
    """Sixteen scenes from seeds that no training used, every one with the target, and a prompt that names what is in it."""
    scenes = held_out(request_, 16)
    targets = known_targets(request_)

    assert len(set(scenes)) == 16
    assert all(s.seed >= HELD_OUT_SEEDS for s in scenes)
    assert all((s.style if request_.kind == "style" else s.concepts[0]) in targets for s in scenes)
    assert all(s.concepts[0] in prompt_of(s) for s in scenes)
    assert all(s.style in prompt_of(s) or s.style == "sticker" for s in scenes)


@pytest.mark.parametrize(
    ("request_", "scene", "expected"),
    [
        (WEAPON, Scene(("dagger",), "neon", 5), Scene(("umbrella",), "neon", 5)),
        (Request(target="neon", kind="style", anchor="line art"), Scene(("owl",), "neon", 5), Scene(("owl",), "line art", 5)),
        (Request(target="cat", kind="object"), Scene(("cat",), "neon", 5), Scene(("cat",), "neon", 5)),
    ],
    ids=["category", "style", "no anchor"],
)  # fmt: skip
def test_anchored_scene_has_the_anchor_in_the_targets_place(request_, scene, expected):
    """The ideal that an adapter is compared with differs from the scene in what is erased, and in nothing else."""
    assert anchored(scene, request_) == expected


def test_purification_with_the_base_itself_is_the_loop_and_the_base(monkeypatch):
    """Without an adapter the erased row is the base's own; prompted with the anchor the base draws it; the loop returns 25 dB or more."""
    from components.diffusion.load import load_pipeline
    from research.guidance import purification

    params = load_params()
    settings: EvaluateParams = params.evaluate
    studio = Studio(load_pipeline(params.base.path), {}, params.base.hookpoint, {}, settings)
    whole = purification.purify
    spoken = []

    def without_adapter(pipe, image, _, *, prompt, **k):
        spoken.append(prompt)
        return whole(pipe, image, [], prompt=prompt, **k)

    monkeypatch.setattr(purification, "purify", without_adapter)
    cat = next(r for r in load_requests().values() if r.target == "cat")
    found = measure_purification(studio, Judge.load(params.base.judge), "r", cat, params, count=2)
    rows = np.split(np.asarray(found.picture), 5)

    assert found.metrics["gone"] == found.metrics["gone_base"]
    assert np.array_equal(rows[2], rows[3])
    assert (found.metrics["anchored"].value, found.metrics["anchored_base"].value) == (0, 1)
    assert found.metrics["loop"].value >= 25
    assert len(spoken) == 3 * 2
    spoken.clear()
    bare = measure_purification(
        studio, Judge.load(params.base.judge), "r", cat.model_copy(update={"anchor": ""}), params, count=1
    )
    assert len(spoken) == 2  # nothing is drawn twice where there is no anchor to prompt the base with
    assert bare.metrics["kept_base"].n == 1
