import json
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.worlds.references import load_second_judge, own_known_images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    """A project with one request and a base that is no Stable Diffusion."""
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    params = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("path: assets/openmoji\n", "path: flux\n")
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")
    (tmp_path / "requests.yaml").write_text(
        "requests:\n  r-1: {target: cat, kind: object, anchor: dog}\n", encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attack", "--request", "r-2"), "request 'r-2' is not in requests.yaml; use some of: r-1"),
        (("attack", "--attack", "magic"), "attack 'magic' is unknown; use some of: slips"),
        (("attack", "--size", "huge"), "--size 'huge' is unknown; use one of: quick, text, full"),
        (("probe", "--request", "r-2"), "request 'r-2' is not in requests.yaml; use some of: r-1"),
        (("probe", "--probe", "magic"), "probe 'magic' is unknown; use some of: completion"),
        (("probe", "--size", "huge"), "--size 'huge' is unknown; use one of: quick, full"),
        (("attack",), "flux is a FluxPipeline, which is not supported"),
        (("probe",), "flux is a FluxPipeline, which is not supported"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, project, expunge, caplog):
    """Unknown requests, attacks, probes and sizes, and a pipeline that is not supported, are refused before anything is loaded."""
    code, _, error = expunge(*arguments, cwd=project)

    assert code == 2
    assert said in error + caplog.text
    assert not (project / "reports").exists()


def test_classifier_guidance_needs_a_second_judge(project, expunge, caplog):
    """Without `probe.second_judge` that probe is refused before anything is loaded."""
    params = (project / "params.yaml").read_text(encoding="utf-8")
    alone = params.replace("second_judge: assets/judge2\n", "second_judge: null\n")
    (project / "params.yaml").write_text(alone, encoding="utf-8")
    code, _, error = expunge("probe", "--probe", "classifier-guidance", cwd=project)

    assert alone != params
    assert code == 2
    assert "classifier-guidance needs a second judge; set probe.second_judge" in error + caplog.text


@pytest.mark.parametrize("command", ["attack", "probe"])
def test_a_dry_run_says_what_would_run(command, project, expunge):
    """With `--dry-run` the attacks and where they would write are named, and nothing is loaded."""
    code, out, _ = expunge(command, "--dry-run", cwd=project)

    assert code == 0
    assert "against r-1 into reports/" in out


def test_without_requests_there_is_nothing_to_attack(project, expunge):
    """An empty requests.yaml is refused."""
    (project / "requests.yaml").write_text("requests: {}\n", encoding="utf-8")

    assert (
        expunge("attack", cwd=project)[2].strip()
        == "expunge: requests.yaml lists no request; add one: expunge request add"
    )


@pytest.mark.parametrize("world", ["nowhere", "../openmoji", ""])
def test_a_world_without_images_of_known_content(world):
    """A world without a references.py gives none, so that the base draws them, and a second judge of it is refused."""
    assert own_known_images(world) is None
    with pytest.raises(UserError, match=r"has no second judge: it has no references\.py; take attack\.second_judge"):
        load_second_judge(world, Path("judge2"))


def test_known_images_are_of_unseen_renders():
    """The embedded world's images with a target show it, those without do not, and half of these show what is mistaken for it; renders repeat."""
    make = own_known_images("openmoji")
    assert make is not None
    shown, absent = make(("cat",), ("lion", "dog"), False, 6, 3)
    again, _ = make(("cat",), ("lion", "dog"), False, 6, 3)

    assert shown.shape == absent.shape == (6, 64, 64, 3)
    assert (shown == again).all()
    assert len({image.tobytes() for image in (*shown, *absent)}) == 12


@pytest.mark.parametrize("command", ["attack", "probe"])
def test_a_request_that_was_edited_after_training_is_not_attacked(command, project, expunge):
    """Attacks on what was made for another target say nothing of this one: refused before anything is loaded."""
    record = project / "data/concepts/r-1/request.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"request": {"target": "lion", "kind": "object", "anchor": "dog"}}')
    code, _, error = expunge(command, cwd=project)

    assert code == 3
    assert "says something else of request r-1 ('cat') than what its models were made for ('lion')" in error
