from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from components.common.errors import UserError
from components.common.sections import PARAMS, Params, Section, load_params

ROOT = Path(__file__).parents[3]


def sections(model=Params):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield name, inner


def params_with(tmp_path, change):
    content = yaml.safe_load((ROOT / PARAMS).read_text())
    change(content)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_params_shipped_load():
    """The params.yaml that ships is valid."""
    assert load_params(ROOT / PARAMS).sae.k > 0


def test_params_every_field_is_documented():
    """Every field of every section says what it is; a seed needs no words."""
    bare = [
        f"{section}.{name}"
        for section, model in sections()
        for name, field in model.model_fields.items()
        if not field.description and name not in ("seed", "gates")
    ]

    assert bare == []


def test_params_unknown_key_is_refused(tmp_path):
    """A misspelt key is refused by name, not dropped."""
    path = params_with(tmp_path, lambda c: c["sae"].update(widht=3))

    with pytest.raises(UserError, match=r"unknown key 'sae\.widht'; remove it or mend its spelling"):
        load_params(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["sae"].update(k=0), "sae.k is 0"),
        (lambda c: c["sae"].update(k=99999), "sae.k=99999 must be smaller than sae.d_sae"),
        (lambda c: c["evaluate"].update(size="huge"), "evaluate.size='huge' is not among"),
        (lambda c: c["guidance"].update(parameters="xattn-q"), "guidance.parameters is 'xattn-q'"),
        (
            lambda c: c["guidance"].update(null_space=True, parameters="xattn"),
            "null_space needs an adapter of keys and values",
        ),
        (lambda c: c["features"].update(positions=["bos"]), "features.positions.0 is 'bos'"),
        (lambda c: c["features"].update(edit="delete"), "features.edit is 'delete'"),
        (lambda c: c.pop("sae"), "sae"),
    ],
)
def test_params_bad_value_is_one_sentence(tmp_path, change, said):
    """A value out of range is refused with its key and value."""
    with pytest.raises(UserError) as caught:
        load_params(params_with(tmp_path, change))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_params_are_frozen():
    """Nothing can change the parameters of a running stage."""
    with pytest.raises(ValidationError):
        load_params(ROOT / PARAMS).sae.k = 3


def test_params_missing_file_is_one_sentence(tmp_path):
    """Outside of the project the message says where to run."""
    with pytest.raises(UserError, match="does not exist; run from the root of the project"):
        load_params(tmp_path / "params.yaml")
