"""docs/your-model.md is run as it stands there, on a stand-in of Stable Diffusion 1.5."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.smallclip import write_clip
from tests.standins import SMALL

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
LONG = {"retrain", "verdict"}
"""Commands of the page that need what takes minutes."""


def commands():
    """Every line of the page's blocks, in order."""
    text = (ROOT / "docs" / "your-model.md").read_text(encoding="utf-8")
    return [line for kind, block in BLOCK.findall(text) if not kind for line in block.splitlines()]


@pytest.fixture
def followed(tmp_path, standin, expunge, monkeypatch):
    """The page followed up to the request and its judge: (the project, what each command said)."""
    shutil.copytree(standin("sd15", "plain"), tmp_path / "models" / "sd15")
    write_clip(tmp_path / "models" / "clip")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where, said = tmp_path, {}
    for line in commands():
        words = shlex.split(line)
        if words[0] == "cd":
            where = where / words[1]
        elif words[1] not in LONG:
            said[" ".join(words[1:3])] = expunge(*words[1:], cwd=where)
    return where, said


def test_the_page_can_be_followed(followed):
    """Every short command of the page ends well: the model is described, prompts are shown, the request is added, CLIP judges it."""
    project, said = followed

    assert {name: found.error for name, found in said.items() if found.code} == {}
    assert "Stable Diffusion 1.x" in said["base check"].out
    assert "an impressionist oil painting" in said["request preview"].out
    assert re.search(r"van gogh +style +clip .*models/clip", said["judge check"].out)
    assert "NO JUDGE" not in said["judge check"].out
    (request,) = yaml.safe_load((project / "requests.yaml").read_text())["requests"].values()
    assert (request["target"], request["kind"]) == ("van gogh", "style")


def test_the_page_has_commands_for_the_test_above():
    """The page shows the commands in the order in which a user needs them."""
    shown = [" ".join(shlex.split(line)[:3]) for line in commands()]

    assert shown[:4] == ["expunge base check", "expunge init project", "cd project", "expunge request preview"]
    assert {"expunge judge check", "expunge retrain", "expunge verdict --gates"} <= set(shown)


def dvc(project, *words):
    """What `dvc WORDS` says in a project, of this checkout's code."""
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [BIN / "dvc", *words], cwd=project, env=os.environ | path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_commands(project, monkeypatch):
    """Runs the command of every stage of dvc.yaml, in its order, in this process: most of a stage's seconds are its imports."""
    monkeypatch.chdir(project)
    monkeypatch.setattr("components.common.stage.run_stage", lambda stage, *arguments: stage(*arguments))
    (request,) = yaml.safe_load((project / "requests.yaml").read_text())["requests"]
    for stage in yaml.safe_load((project / "dvc.yaml").read_text())["stages"].values():
        python, flag, module, *arguments = shlex.split(stage.get("do", stage)["cmd"].replace("${key}", request))
        assert (python, flag) == ("python", "-m")
        monkeypatch.setattr("sys.argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__")


@pytest.mark.slow
def test_the_project_runs_to_a_verdict(followed, monkeypatch):
    """All stages run on the stand-in with small numbers, and then dvc has nothing left to do; the random images show nothing, so no judge tells the target and the verdict is fail."""
    project, _ = followed
    params = yaml.safe_load((project / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section] |= values
    params["judge"]["any"][0]["sizes"] = [16, 512]
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run_commands(project, monkeypatch)
    dvc(project, "commit", "--force")  # every dependency and output of the graph is there
    verdict = json.loads((project / "reports/evaluate/verdict.json").read_text())
    judges = json.loads((project / "reports/evaluate/metrics.json").read_text())["judges"]

    assert "up to date" in dvc(project, "status")
    assert not verdict["passed"]
    assert all(found["target"].startswith("no judge tells 'van gogh'") for found in judges.values())
    assert {g["reason"] for g in verdict["gates"] if g["metric"] == "ua"} == {
        found["target"] for found in judges.values()
    }
