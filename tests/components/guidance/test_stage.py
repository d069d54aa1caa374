import pytest
from safetensors.torch import load_file

from components.common.errors import ArtifactError
from components.common.files import digest, read_sidecar
from components.guidance.adapters import FORMAT, WEIGHTS, has_adapter
from components.guidance.stage import guidance

PARAMS = """
base: {path: base, hookpoint: encoder.layers.0, guidance_scale: 3.0, solver_steps: 10}
guidance: {rank: 4, steps: STEPS, retain_weight: 80.0, hold: null-space, precision: "no", gradient_checkpointing: false, seed: 0}
"""


@pytest.fixture
def project(tiny_pipe, record, table, tmp_path, monkeypatch):
    """A project with a tiny base and one request; returned is what runs the stage with so many steps and these channels."""
    monkeypatch.chdir(tmp_path)
    tiny_pipe.save_pretrained("base")
    concepts = tmp_path / "data" / "concepts" / "r"
    concepts.mkdir(parents=True)
    table().to_parquet(concepts / "prompts.parquet")

    def stage(steps, channels=("filter", "guidance")):
        asked = record.model_copy(update={"request": record.request.model_copy(update={"channels": channels})})
        (concepts / "request.json").write_text(asked.model_dump_json())
        (tmp_path / "params.yaml").write_text(PARAMS.replace("STEPS", str(steps)))
        guidance("r")
        return tmp_path / "models" / "guidance" / "r"

    return stage


def test_stage_trains_and_says_from_what(project, tmp_path):
    """Adapter, parameters, digests of the inputs, last losses and a plot; no checkpoint is left behind."""
    folder = project(4)
    sidecar = read_sidecar(folder, FORMAT)

    assert sidecar["params"]["steps"] == 4
    parts = {part: digest(tmp_path / "base" / part) for part in ("scheduler", "text_encoder", "tokenizer", "unet")}
    assert sidecar["inputs"] == parts | {"concepts": digest(tmp_path / "data" / "concepts" / "r")}
    assert set(sidecar["facts"]["final"]) == {"target_loss", "retain_loss", "closed_form_loss"}
    assert load_file(folder / WEIGHTS).keys() == sidecar["tensors"].keys()
    assert (folder / "training.png").is_file()
    assert not list((tmp_path / ".cache").rglob("*.safetensors"))


def test_stage_trains_the_same_bytes_again(project):
    """Same params, same inputs: same files (invariant 8)."""
    assert digest(project(3)) == digest(project(3))


def test_stage_in_the_instant_mode_records_it(project):
    """With `steps: 0` there is an adapter without a training curve, and the sidecar says so."""
    folder = project(0)

    assert read_sidecar(folder, FORMAT)["params"]["steps"] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["artifact.json", WEIGHTS]
    assert any(tensor.any() for tensor in load_file(folder / WEIGHTS).values())


def test_stage_without_the_channel_writes_a_sidecar_alone(project):
    """A request that the filter alone serves has a folder that says that there is no adapter, in place of an older one."""
    project(0)
    folder = project(250, channels=("filter",))

    assert [path.name for path in folder.iterdir()] == ["artifact.json"]
    assert read_sidecar(folder, "expunge/no-adapter").keys() <= {"format", "version", "seal"}
    assert not has_adapter(folder)


def test_stage_for_an_unknown_request_is_one_sentence(project):
    """A request without a record names the stage that writes it."""
    project(0)

    with pytest.raises(
        ArtifactError, match=r"request\.json is missing; run the stage that writes it: dvc repro concepts"
    ):
        guidance("other")
