"""The judge of the embedded world, and what opens the judge of any world."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from components.common.artifacts import fill_artifact
from components.common.closure import closure
from components.common.errors import ArtifactError, UserError
from components.common.files import new_folder, write_sidecar
from components.diffusion.images import to_model
from components.diffusion.text import load_towers
from components.worlds.base import Judgement
from components.worlds.judges import judge_module, load_judge, load_scorer
from components.worlds.openmoji.judge import FORMAT, Judge, JudgeNet
from components.worlds.openmoji.judge2 import load_second_judge
from components.worlds.openmoji.render import render
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, draw, scenes
from components.worlds.panel import check_sizes
from components.worlds.params import JudgeParams

ASSETS = Path(__file__).parents[3] / "assets"
SHIPPED = JudgeParams(path=ASSETS / "openmoji" / "judge", clip=ASSETS / "clip")
NAMES = {"concepts": ["lantern", "kettle", "cat"], "styles": ["photo", "woodcut"]}


def packed(folder, facts, *, concepts=3, styles=2):
    """An untrained judge with three concepts and two styles, and what its sidecar says of them."""
    torch.manual_seed(0)
    net = JudgeNet(concepts, styles)
    with new_folder(folder) as partial:
        fill_artifact(partial, kind=FORMAT, tensors=net.state_dict(), facts=facts)
    return folder


def test_labels_are_those_of_the_sidecar(tmp_path):
    """A judge of a world that has neither drawings nor YAML calls things by the names in its own sidecar, in their order."""
    judge = Judge.load(packed(tmp_path / "judge", NAMES))
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    said = judge(images)
    concept, style, none = (part.numpy() for part in _logits(judge, images))

    assert (said.concepts.shape, said.styles.shape, said.none.shape) == ((5, 3), (5, 2), (5,))
    np.testing.assert_allclose(said.concepts, 1 / (1 + np.exp(-concept)), rtol=1e-5)
    np.testing.assert_allclose(said.none, 1 / (1 + np.exp(-none)), rtol=1e-5)
    assert said.style() == [("photo", "woodcut")[row.argmax()] for row in style]
    assert said.concept_names == ("lantern", "kettle", "cat")


@torch.no_grad()
def _logits(judge, images):
    return judge.net(to_model(images))


def test_judgement_reads_probabilities():
    """top, present and style of probabilities written by hand; at 0.5 or more of none nothing is present."""
    said = Judgement(
        np.array([[0.9, 0.6, 0.1], [0.2, 0.4, 0.3], [0.9, 0.1, 0.1]]), np.array([[0.3, 0.7], [0.8, 0.2], [0.5, 0.5]]),
        np.array([0.1, 0.2, 0.5]), ("lantern", "kettle", "cat"), ("photo", "woodcut"),
    )  # fmt: skip

    assert said.top() == ["lantern", "kettle", "none"]
    assert said.present() == [{"lantern", "kettle"}, frozenset(), frozenset()]
    assert said.style() == ["woodcut", "photo", "photo"]


def test_judge_does_not_depend_on_the_batch():
    """Batches of two say what one batch says, and no image gives empty arrays of the right width."""
    judge = Judge.load(SHIPPED.path)
    images = np.stack([render(name, "neon", 3) for name in ("cat", "car", "owl", "key", "rose")])
    one, two, empty = judge(images), judge(images, batch=2), judge(images[:0])

    np.testing.assert_allclose(one.concepts, two.concepts, atol=1e-5)
    assert one.top() == ["cat", "car", "owl", "key", "rose"]
    assert (empty.concepts.shape, empty.styles.shape, empty.none.shape) == ((0, 85), (0, 8), (0,))
    assert empty.top() == []


def test_two_judges_tell_things_and_styles():
    """Of renders that neither was trained on each judge names things and styles right at least 95 times in a hundred, by weights of its own."""
    listed = scenes(singles=1, pairs=0, seed=HELD_OUT_SEEDS + 900_000)
    images = np.stack([draw(scene) for scene in listed])
    first, second = Judge.load(SHIPPED.path), load_second_judge(ASSETS / "judge2")

    assert type(first.net) is not type(second.net)
    for judge in (first, second):
        said = judge(images)
        things = np.mean([top == scene.concepts[0] for top, scene in zip(said.top(), listed, strict=True)])
        styles = np.mean([style == scene.style for style, scene in zip(said.style(), listed, strict=True)])
        assert things >= 0.95, things
        assert styles >= 0.95, styles


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "artifact.json lists no concepts; pack it again"),
        ({"concepts": NAMES["concepts"]}, "artifact.json lists no styles; pack it again"),
        (NAMES | {"concepts": []}, "artifact.json lists no concepts"),
        (NAMES | {"concepts": [1, 2, 3]}, "artifact.json lists no concepts"),
        (NAMES | {"concepts": ["cat", "cat", "dog"]}, "artifact.json lists one of its concepts twice"),
        (
            NAMES | {"concepts": ["cat", "dog"]},
            "lists 2 concepts and 2 styles, but its concept.bias has shape (3,), not (2,); pack it again",
        ),
        (
            NAMES | {"styles": ["photo"]},
            "lists 3 concepts and 1 styles, but its rest.bias has shape (3,), not (2,); pack it again",
        ),
    ],
)
def test_labels_that_do_not_fit_the_weights_are_refused(tmp_path, facts, said):
    """A sidecar without labels, or with more or fewer than the weights have, is refused with one sentence."""
    with pytest.raises(ArtifactError) as caught:
        Judge.load(packed(tmp_path / "judge", facts))

    assert said in str(caught.value)


def test_digest_changes_with_labels_and_with_weights(tmp_path):
    """The pinned digest is another one when a label or a weight is another one."""
    same = [packed(tmp_path / name, NAMES) for name in ("one", "two")]
    renamed = packed(tmp_path / "three", NAMES | {"styles": ["photo", "oil"]})
    torch.manual_seed(1)
    with new_folder(tmp_path / "four") as partial:
        fill_artifact(partial, kind=FORMAT, tensors=JudgeNet(3, 2).state_dict(), facts=NAMES)
    found = [Judge.load(folder).digest for folder in (*same, renamed, tmp_path / "four")]

    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_judge_of_another_world_is_refused(tmp_path):
    """A judge that does not know a request's label is refused; one that knows all is opened."""
    other = JudgeParams(path=packed(tmp_path / "judge", NAMES))

    assert load_judge("openmoji", other, ["cat", "woodcut"]).concept_names == ("lantern", "kettle", "cat")
    with pytest.raises(UserError) as caught:
        load_judge("openmoji", other, ["cat", "neon"])
    assert str(caught.value) == (
        f"the judge in {other.path} does not know 'neon'; point judge.path at a judge of the world openmoji, or take the "
        "request out"
    )


@pytest.mark.parametrize("world", ["atlantis", "", "elsewhere/toy", "openmoji.judge"])
def test_world_without_a_judge_is_refused(world):
    """A world that is unknown, or lies elsewhere, has no judge: one sentence."""
    with pytest.raises(UserError, match=r"has no judge; use a world with a judge\.py, or take judge\.path out"):
        load_judge(world, SHIPPED, [])


def test_scorer_is_opened_if_params_name_one(monkeypatch):
    """Without judge.clip there is no scorer; with it the world's is opened; a judge that cannot score is refused."""
    text = load_towers(ASSETS / "openmoji").first[:2]
    scorer = load_scorer("openmoji", SHIPPED, *text)

    assert load_scorer("openmoji", JudgeParams(path=SHIPPED.path), *text) is None
    assert scorer(np.stack([render("cat", "sticker", 0)]), ["a cat"]).shape == (1,)
    monkeypatch.delattr("components.worlds.openmoji.judge.load_scorer")
    with pytest.raises(UserError, match=r"scores no prompts; take judge\.clip out of params\.yaml"):
        load_scorer("openmoji", SHIPPED, *text)


def test_judging_needs_nothing_that_draws():
    """The code that a judge reaches is neither what renders nor the world's own names."""
    reached = {path.name for path in closure(judge_module("openmoji"))}

    assert {"judge.py", "clip.py", "artifacts.py"} <= reached
    assert not reached & {"render.py", "scenes.py", "world.py", "templated.py"}


def test_judge_with_other_bytes_is_refused(tmp_path):
    """One changed byte of the judge's weights is refused, and so is a sidecar of another format."""
    folder = Path(shutil.copytree(SHIPPED.path, tmp_path / "judge"))
    sidecar, data = (
        json.loads((folder / "artifact.json").read_text()),
        bytearray((folder / "model.safetensors").read_bytes()),
    )
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))

    with pytest.raises(ArtifactError, match="altered or cut short"):
        Judge.load(folder)
    write_sidecar(folder, {k: v for k, v in sidecar.items() if k != "seal"} | {"format": "expunge/sae"})
    with pytest.raises(ArtifactError, match="has format 'expunge/sae'"):
        Judge.load(folder)


def test_embedded_judge_is_a_judge_by_name():
    """It knows its labels, says of each what its judgement says, and takes images of 64 pixels alone."""
    judge = load_judge("openmoji", SHIPPED, ["cat"])
    images = np.stack([render(name, "neon", 3) for name in ("cat", "car")])
    chance, said = judge.present(images, ["cat", "neon", "car"]), judge(images)

    assert (chance[:, 0] >= 0.5).tolist() == said.found("cat", style=False).astype(bool).tolist() == [True, False]
    assert (chance[:, 1] >= 0.5).tolist() == [True, True]
    assert [judge.knows(name) for name in ("cat", "neon", "van gogh")] == [True, True, False]
    assert judge.judges_of("cat") == (judge,)
    check_sizes(judge, 64)
    with pytest.raises(UserError, match="the judges take images of 64 to 64 pixels, but the base draws 128"):
        check_sizes(judge, 128)


def test_a_worlds_judge_may_lie_anywhere(tmp_path):
    """A world that params name by its path brings its own judge.py."""
    (tmp_path / "judge.py").write_text(
        "class Mine:\n    def knows(self, name):\n        return name == 'cat'\n\n\ndef load_judge(params):\n    return Mine()\n"
    )

    assert load_judge(str(tmp_path), SHIPPED, ["cat"]).knows("cat")
    with pytest.raises(UserError, match="does not know 'dog'"):
        load_judge(str(tmp_path), SHIPPED, ["dog"])
