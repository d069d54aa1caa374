"""The studies of detection in text, small."""

import json

import numpy as np
import pytest

from components.filter.targets import TargetNames
from components.filter.text import Names
from research.filter.prompts import project_world
from research.filter.text import KINDS, false_alarms, more_targets, row, world_targets
from research.show import publish


def test_made_forms_by_hand():
    """Each kind makes of a name what it says, with the letters that it needs."""
    rng = np.random.default_rng(0)
    made = {kind: make("kitten", rng) for kind, (_, make) in KINDS.items()}

    assert made["letters apart"] == "k i t t e n"
    assert made["digits"] == "k1773n"
    assert made["plural"] == "kittens"
    assert sorted(made["swapped"]) == sorted("kitten")
    assert (len(made["dropped"]), len(made["inserted"]), len(made["substituted"])) == (5, 7, 6)


def test_a_false_alarm_is_of_a_request_that_the_prompt_does_not_name():
    """A name as it is listed is no false alarm, nor is a second, hidden one beside it."""
    names = Names({"cat": TargetNames(("cat", "kitten"))})
    found = false_alarms(names, ["a cat", "a cat and a kitteg", "a kitteg", "a dog"])

    assert [len(hits) for hits in found] == [0, 0, 1, 0]


def test_targets_of_the_world_come_first():
    """A hundred targets are those of the world and then plain nouns, none twice."""
    world = project_world()
    targets = more_targets(130, world)

    assert len(targets) == 130
    assert list(targets)[: len(world_targets(world))] == list(world_targets(world))
    assert "palm tree" in targets["tree"].shields


@pytest.mark.parametrize("before", [None, [{"what": "a", "value": 9}, {"what": "c", "value": 3}]])
def test_rows_replace_those_of_the_same_name(tmp_path, before):
    """Rows of other parts stay as they are."""
    path = tmp_path / "reports" / "show.json"
    if before:
        path.parent.mkdir()
        path.write_text(json.dumps(before))
    publish([row("a", 1.0, 2, "= 1", met=True)], path)
    found = {item["what"]: item["value"] for item in json.loads(path.read_text())}

    assert found == ({"a": 1.0, "c": 3} if before else {"a": 1.0})
