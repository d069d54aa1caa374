import pytest
import yaml

from components.common.errors import UserError
from components.requests.requests import add_request, load_requests, remove_request
from components.worlds.load import load_world

CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}


def write(path, *records):
    path.write_text(yaml.safe_dump({"requests": {f"r-{i}": record for i, record in enumerate(records)}}))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": ""}, "target"),
        ({"target": "  "}, "the target is empty; name what must no longer be drawn"),
        ({"anchor": "cat"}, "the anchor 'cat' is the target itself; name something else"),
        ({"anchor": "Kitty"}, "the anchor 'kitty' is the target itself"),
        ({"neighbours": ["lion", "cat"]}, "'cat' is target and neighbour at once"),
        ({"channels": []}, "channels is empty; use filter, guidance or both"),
        ({"channels": ["erase"]}, "channels"),
        ({"kind": "thing"}, "kind"),
        ({"colour": "red"}, "unknown key 'requests.r-0.colour'"),
    ],
)
def test_request_bad_input_is_one_sentence(tmp_path, change, said):
    """What does not make sense is refused with the request's id and the reason."""
    with pytest.raises(UserError) as caught:
        load_requests(write(tmp_path / "requests.yaml", CAT | change))

    assert said in str(caught.value)
    assert "requests.r-0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_request_names_are_unique_over_requests(tmp_path):
    """One alias cannot belong to two requests."""
    other = {"target": "lion", "kind": "object", "aliases": ["feline"]}

    with pytest.raises(UserError, match="'feline' is a name of both r-0 and r-1; leave it to one of them"):
        load_requests(write(tmp_path / "requests.yaml", CAT, other))


def test_request_anchor_that_another_request_erases_is_refused(tmp_path):
    """Nothing may draw what another request erases, whether it says so by a name or by its category."""
    dog = {"target": "dog", "kind": "object", "anchor": "horse"}
    weapon = {"target": "weapon", "kind": "category", "anchor": "umbrella"}
    axe = {"target": "key", "kind": "object", "anchor": "axe"}

    with pytest.raises(UserError, match="the anchor 'dog' of r-0 is erased by r-1; draw something that no request"):
        load_requests(write(tmp_path / "requests.yaml", CAT, dog))
    with pytest.raises(UserError, match="request r-1: the anchor 'axe' is erased by r-0; draw something"):
        load_world("openmoji").check(load_requests(write(tmp_path / "requests.yaml", weapon, axe)))


def test_request_add_then_remove_restores_the_file(tmp_path):
    """Withdrawing a request gives back the bytes from before it."""
    path = write(tmp_path / "requests.yaml", CAT)
    add_request({"target": "ghost", "kind": "character"}, path)
    before = path.read_bytes()
    added = add_request({"target": "robot", "kind": "character", "anchor": "alien"}, path)

    assert load_requests(path)[added].anchor == "alien"
    remove_request(added, path)
    assert path.read_bytes() == before


def test_request_add_refused_leaves_the_file_alone(tmp_path):
    """A bad request changes nothing, and neither does a dry run."""
    path = write(tmp_path / "requests.yaml", CAT)
    before = path.read_bytes()

    with pytest.raises(UserError):
        add_request({"target": "lion", "kind": "object", "aliases": ["kitty"]}, path)
    add_request({"target": "ghost", "kind": "character"}, path, dry_run=True)
    assert path.read_bytes() == before


def test_request_remove_unknown_is_one_sentence(tmp_path):
    """An unknown id names those that exist."""
    with pytest.raises(UserError, match=r"request 'r-9' is not in .*; use one of: r-0"):
        remove_request("r-9", write(tmp_path / "requests.yaml", CAT))
