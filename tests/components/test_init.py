"""`expunge init`, `base check` and `judge check`: a project of a user's own, outside this repository."""

import json
import os
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import yaml

from components.cli.params import read_params
from components.cli.presets import PRESETS, hookpoints, project_params
from components.collect.sources import read_source
from components.common.closure import ROOT
from components.diffusion.inspect import NAMES, inspect_base
from flows import deps
from flows.deps import code_deps, for_project, with_deps
from tests.fakefolder import fake_pipeline, write_json
from tests.toyworld import write_toy

BIN = Path(sys.executable).parent
EXPECTED = {
    "sd15": ("encoder.layers.8", 7.5, 50), "sd21": ("encoder.layers.16", 7.5, 50),
    "sdxl": (["encoder.layers.9", "encoder.layers.28"], 7.5, 50),
}  # fmt: skip


def dvc(folder, *arguments):
    """Runs dvc in a project, with this checkout's code, and returns what it says."""
    code = {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [BIN / "dvc", *arguments], cwd=folder, env=os.environ | code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project for SD 1.5 in a folder of its own, made by the command as a program."""
    folder = tmp_path_factory.mktemp("own")
    fake_pipeline(folder / "models" / "sd15")
    (folder / "project").mkdir()
    (folder / "project" / "README.md").write_text("My own.\n")
    (folder / "project" / ".gitignore").write_text("*.log\n/data/")
    code = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "expunge", "init", "project", "--base", "models/sd15"],
        cwd=folder, env=code, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Stable Diffusion 1.x, images of 512 × 512 pixels" in done.stdout
    assert "no judge of images is named: give params.yaml one under judge.any" in done.stdout
    return folder / "project"


def test_a_project_is_whole(project):
    """Parameters, requests, graph, code, README, git and DVC are there, and every section of params.yaml is understood."""
    names = {path.name for path in project.iterdir()}
    graph = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    read = [dep for stage in graph.values() for dep in stage.get("do", stage)["deps"]]

    assert {
        "params.yaml",
        "requests.yaml",
        "dvc.yaml",
        "code.json",
        "README.md",
        ".gitignore",
        ".gitattributes",
        ".git",
        ".dvc",
        "inputs",
    } <= names
    assert not [dep for dep in read if dep.startswith(("components/", "/", "assets/"))]
    assert "inputs" in graph["concepts"]["deps"]
    assert set(json.loads((project / "code.json").read_text())) == set(graph)


def test_the_prompts_that_thresholds_rest_on_come_along(project):
    """A project has the prompts of people that its params.yaml names, with their source and licence, and its graph depends on them."""
    named = yaml.safe_load((project / "params.yaml").read_text())["corpus"]["benign"]["real"]

    assert named == ["inputs/real.csv"]
    assert len(read_source(str(project / named[0]))) == 5816
    assert "CC BY 4.0" in (project / "inputs/real.md").read_text()
    assert named[0] in yaml.safe_load((project / "dvc.yaml").read_text())["stages"]["corpus"]["deps"]


def test_what_was_there_stays(project):
    """A README of the user's own is not overwritten, and ignored files that were listed stay listed, once."""
    ignored = (project / ".gitignore").read_text().splitlines()

    assert (project / "README.md").read_text() == "My own.\n"
    assert ignored[:2] == ["*.log", "/data/"]
    assert len(set(ignored)) == len(ignored)


def git(folder, *arguments):
    """Runs git as a user whose lines end as on Windows."""
    named = ["-c", "core.autocrlf=true", "-c", "core.safecrlf=false", "-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_git_keeps_every_byte_of_a_project_and_nothing_secret(project, tmp_path):
    """A clone with core.autocrlf has the same bytes, line ends of all kinds included; the ledger, secrets and outputs are not in it."""
    copy, clone = tmp_path / "copy", tmp_path / "clone"
    shutil.copytree(project, copy)
    (copy / "inputs" / "windows.csv").write_bytes(b"prompt\r\na cat\r\n")
    secrets = ("ledger.db", "ledger.db-wal", "mlflow.db", ".expunge/client.env", "data/x", "models/x", ".cache/x")
    for name in secrets:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("x")
    git(copy, "add", "--all")
    git(copy, "commit", "--quiet", "-m", "start")
    git(tmp_path, "clone", "--quiet", str(copy), str(clone))
    listed = git(copy, "ls-files", "-z").split("\0")[:-1]

    assert {".gitattributes", "dvc.yaml", "inputs/windows.csv", "params.yaml", "requests.yaml"} <= set(listed)
    assert not set(secrets) & set(listed)
    assert [name for name in listed if (clone / name).read_bytes() != (copy / name).read_bytes()] == []
    (copy / ".gitattributes").unlink()  # without it the clone has other bytes: this test can fail
    git(copy, "commit", "--quiet", "--all", "-m", "without")
    git(tmp_path, "clone", "--quiet", str(copy), str(tmp_path / "other"))
    assert (tmp_path / "other" / "params.yaml").read_bytes() != (copy / "params.yaml").read_bytes()


def test_stages_run_outside_of_the_repository(project, expunge):
    """The text stages run in the project by the package's code; an edit of that code or of `inputs` re-runs the one that it reaches."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["corpus"] |= {"captions": 300, "english": 300}
    params["corpus"]["benign"] |= {"calibrate": 300, "evaluate": 200}
    params["concepts"] |= {"per_name": 4, "retain": 30, "mixed": 6}
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    said = expunge(
        "request", "add", "van gogh", "--kind", "style", "--anchor", "an impressionist oil painting", cwd=project
    )
    assert said.code == 0, said.error
    dvc(project, "repro", "--quiet", "concepts")
    record = project / "data" / "concepts" / said.out.strip() / "request.json"
    assert json.loads(record.read_text())["request"]["target"] == "van gogh"
    code = json.loads((project / "code.json").read_text())
    (project / "code.json").write_text(json.dumps(code | {"concepts": "0" * 64}))
    (project / "inputs" / "mine.csv").write_text("prompt,counterpart,split\n")
    changed = json.loads(dvc(project, "status", "--json", "corpus", "concepts"))
    assert list(changed) == ["concepts"]
    assert {name for what in changed["concepts"] for name in what["changed deps"]} == {"code.json", "inputs"}


def written(folder, family="sd15", clip=None):
    """params.yaml and the graph of a project in `folder`, without git and DVC; returns the text of params.yaml."""
    base = folder / "base"
    fake_pipeline(base, family)
    text = project_params(ROOT / "params.yaml", inspect_base(str(base)), base, "open", family, clip)
    (folder / "params.yaml").write_text(text)
    assert deps.main(folder) == 0
    return text


@pytest.mark.parametrize("family", list(NAMES))
def test_presets_have_a_source_for_every_number(tmp_path, family):
    """Each number of a preset stands in params.yaml with its source beside it; layers are those of the published encoders."""
    text = written(tmp_path, family)
    params = yaml.safe_load(text)
    section = params["base"]

    assert (section["hookpoint"], section["guidance_scale"], section["solver_steps"]) == EXPECTED[family]
    assert params["sae"]["d_sae"] == 16384
    assert 32 <= params["sae"]["k"] <= 64
    assert (params["guidance"]["precision"], params["guidance"]["gradient_checkpointing"]) == ("bf16", True)
    for value in PRESETS[family]:
        found = reduce(lambda level, key: level[key], value.key.split("."), params[value.section])
        assert found == value.value
        assert any(f"{value.key.split('.')[-1]}:" in line and f"# {value.source}" in line for line in text.splitlines())
    assert "data/base/text.json" in yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]["sae"]["deps"]


def test_hookpoints_of_short_encoders_stay_inside():
    """An encoder of four layers gets a layer at the same depth; in SDXL it stays below the layer whose output is read."""
    assert hookpoints("sd15", (4,)) == ["encoder.layers.2"]
    assert hookpoints("sdxl", (4, 5)) == ["encoder.layers.1", "encoder.layers.2"]
    assert hookpoints("sd15", (2,)) == ["encoder.layers.0"]


def test_a_clip_and_a_safety_checker_become_judges(tmp_path):
    """A CLIP that is named judges everything and scores prompts; a model's own safety checker judges explicit requests."""
    base, clip = tmp_path / "base", tmp_path / "clip"
    write_json(base / "safety_checker" / "config.json", {})
    judge = yaml.safe_load(written(tmp_path, clip=clip))["judge"]
    files = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]["evaluate"]["deps"]

    assert judge["clip"] == str(clip)
    assert judge["any"] == [{"reader": "clip", "path": str(clip)}]
    assert judge["explicit"] == [{"reader": "safety-checker", "path": str(base / "safety_checker")}]
    assert {str(clip), str(base / "safety_checker")} <= set(files)


def test_without_judges_the_graph_depends_on_none(tmp_path):
    """`judge.clip: null` and no judge at all are legal: the graph names no file of theirs, and every section is understood."""
    written(tmp_path)
    graph = yaml.safe_load((tmp_path / "dvc.yaml").read_text())["stages"]

    assert not [
        dep for stage in graph.values() for dep in stage.get("do", stage)["deps"] if "judge" in dep or "clip" in dep
    ]
    assert read_params(tmp_path / "params.yaml")["judge"]["clip"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p", "--base", "none"], "none does not exist; name the folder of a diffusers pipeline"),
        (["p", "--base", "m", "--preset", "sd3"], "--preset 'sd3' is unknown; use one of: sd15, sd21, sdxl"),
        (
            ["p", "--base", "m", "--preset", "sdxl"],
            "m is Stable Diffusion 1.x, and --preset is sdxl; leave --preset out",
        ),
        (["p", "--base", "m", "--world", "mars"], "world 'mars' is unknown; use one of open, openmoji"),
        (["p", "--base", "m", "--clip", "m"], "--clip m is no transformers model (it has no config.json)"),
        (["p", "--base", "m", "--clip", "c"], "--clip c holds no safetensors file; save it again with save_pretrained"),
        (["q", "--base", "m"], "q has a params.yaml already; name another folder, or edit that file"),
        (["r", "--base", "m"], "r/requests.yaml, line 2, is not YAML"),
        (["s", "--base", "m"], "s/.gitignore, line 1, is not UTF-8; save the file as UTF-8"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, expunge, arguments, said):
    """Every wrong argument is one sentence, and no project is begun."""
    fake_pipeline(tmp_path / "m")
    write_json(tmp_path / "q" / "params.yaml", {})
    write_json(tmp_path / "c" / "config.json", {})
    for name, content in (("r/requests.yaml", b"{"), ("s/.gitignore", b"\xff")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    found = expunge("init", *arguments, cwd=tmp_path)

    assert found.code == 2
    assert said in found.error
    assert not (tmp_path / "p").exists()


def test_base_check_says_what_a_model_is(tmp_path, expunge):
    """`base check` describes a folder, or ends with 2 and the command that helps."""
    fake_pipeline(tmp_path / "m", "sdxl", variant=".fp16")
    good, bad = (expunge("base", "check", name, cwd=tmp_path) for name in ("m", "someone/model"))

    assert good.code == 0
    assert "Stable Diffusion XL, images of 1024 × 1024 pixels" in good.out
    assert "unet: the fp16 variant alone is there" in good.out
    assert bad.code == 2
    assert "hf download someone/model --local-dir models/model" in bad.error


def test_worlds_of_ones_own_are_dependencies(tmp_path):
    """A world that is named by its path is depended on by that path, in this repository and in a project."""
    toy = write_toy(tmp_path)
    (toy / "judge.py").write_text("")
    graph = with_deps(yaml.safe_load((ROOT / "dvc.yaml").read_text()), "toy", ROOT, None, tmp_path)
    read = list(graph["stages"]["concepts"]["deps"])
    judged = list(graph["stages"]["evaluate"]["deps"])
    project, codes = for_project(graph, "toy")

    assert "${world}/world.yaml" in read
    assert "${world}/judge.py" in judged
    assert "${world}/world.yaml" in project["stages"]["concepts"]["deps"]
    assert all(len(code) == 64 for code in codes.values())
    assert "components/worlds/${world}/world.yaml" in code_deps("components.collect.stage_concepts", "open", ROOT)


def test_only_the_attacks_depend_on_the_second_judge():
    """A second judge is a dependency of the stage that asks it, by its folder, and of no other."""
    graph = with_deps(
        yaml.safe_load((ROOT / "dvc.yaml").read_text()), "openmoji", ROOT, None, ROOT, Path("other/judge")
    )

    having = [name for name, stage in graph["stages"].items() if "other/judge" in stage.get("do", stage)["deps"]]
    assert having == ["attack"]


def test_judge_check_names_the_judge_of_every_name(expunge, monkeypatch):
    """In this repository every name of requests.yaml has the embedded judge."""
    monkeypatch.chdir(ROOT)
    found = expunge("judge", "check")

    assert found.code == 0, found.error
    assert "NO JUDGE" not in found.out
    assert "the world's own, assets/openmoji/judge" in found.out


def test_judge_check_says_who_is_missing(project, expunge):
    """A target that no judge knows ends with 2 and says what to add."""
    if "target" not in (project / "requests.yaml").read_text():
        expunge("request", "add", "van gogh", "--kind", "style", "--anchor", "an oil painting", cwd=project)
    found = expunge("judge", "check", cwd=project)

    assert found.code == 2
    assert "NO JUDGE" in found.out
    assert "no judge knows 'van gogh'" in found.error
    assert "add one under judge in params.yaml, such as clip under any" in found.error
