import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from components.cli.main import app
from components.common.files import canonical, key_of
from components.common.sections import read_section
from components.diffusion.folder import folder_digests
from components.evaluate.evidence import judge_evidence, read_params_digest, requests_digest
from components.evaluate.params import EvaluateParams
from components.registry.lock import dvc_md5
from components.requests.requests import load_requests
from tests.toyattacks import attack_params, attack_results, write_attacks

ROOT = Path(__file__).parents[2]
EXPUNGE = Path(sys.executable).parent / "expunge"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`expunge` in a folder of its own with the parameters and requests that ship."""
    for name in ("params.yaml", "requests.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def every_command():
    def walk(group, prefix):
        for name, command in group.commands.items():
            yield (*prefix, name)
            yield from walk(command, (*prefix, name)) if hasattr(command, "commands") else ()

    return [(), *walk(typer.main.get_command(app), ())]


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_help(expunge, command):
    """Each command explains itself."""
    code, out, _ = expunge(*command, "--help")

    assert code == 0
    assert "Usage" in out


def test_the_program_is_installed():
    """The console script runs in a process of its own and lists the requests that ship."""
    done = subprocess.run([EXPUNGE, "request", "list"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "cat  (object)  -> dog" in done.stdout
    assert "neon  (style)  -> line art" in done.stdout


def test_listing_requests_loads_no_torch():
    """The commands that only read YAML start without torch, pandas or a world."""
    program = (
        "import sys; sys.argv = ['expunge', 'request', 'list']\n"
        "from components.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print({'torch', 'pandas', 'diffusers', 'mlflow', 'prefect'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("request", "add", "unicorn"), 2, "concept 'unicorn' is not in the world openmoji; use one of"),
        (("request", "add", "cat"), 2, "'cat' is a name of both r-5c1e09a7 and"),
        (("request", "add", "owl", "--anchor", "owl"), 2, "the anchor 'owl' is the target itself"),
        (
            ("request", "add", "animal", "--kind", "category", "--anchor", "castle"),
            2,
            "'cat' is erased by r-5c1e09a7 already; withdraw one of the two",
        ),
        (("request", "show", "r-0"), 2, "request 'r-0' is not in requests.yaml; use one of: r-5c1e09a7"),
        (("request", "remove", "r-0"), 2, "request 'r-0' is not in requests.yaml"),
        (("generate", "a cat", "--output", "nowhere/x.png"), 2, "--output nowhere/x.png cannot be written"),
        (("generate", "a cat", "--variant", "both"), 2, "--variant 'both' is unknown; use one of: base"),
        (("verdict",), 3, "reports/evaluate/metrics.json is missing; run the evaluation"),
        (("explain", "a cat"), 3, "models/filter holds no artifact.json; run the stage that writes it"),
        (("generate", "a cat"), 2, "assets/openmoji is no diffusers pipeline"),
    ],
)
def test_bad_input_is_one_sentence(project, expunge, arguments, code, said):
    """A mistake is one line on stderr and an exit code, never a traceback, and requests.yaml stays as it was."""
    before = (project / "requests.yaml").read_bytes()
    found, _, error = expunge(*arguments)

    assert found == code
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert (project / "requests.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"world": "nowhere"}, "world 'nowhere' is unknown; use one of open, openmoji, or a folder with a world.yaml"),
        ({"world": 3}, "params.yaml: world is 3"),
        ({"guidance": {"rank": 0}}, "params.yaml: guidance.rank is 0"),
        ({"guidance": {"flip": True}}, "params.yaml has an unknown key 'guidance.flip'; remove it"),
        ({"extra": {}}, "params.yaml has an unknown section 'extra'; use some of: world, base"),
        ({"sae": None}, "params.yaml has no section 'sae'"),
    ],
)
def test_bad_params_are_one_sentence(project, expunge, change, said):
    """An unknown world, section or key, and a value out of range, are refused before anything is loaded."""
    content = yaml.safe_load((project / "params.yaml").read_text())
    for section, value in change.items():
        content[section] = content[section] | value if isinstance(value, dict) and section in content else value
        if value is None:
            del content[section]
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    command = ("request", "add", "owl") if change.get("world") == "nowhere" else ("params",)
    code, _, error = expunge(*command)

    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_outside_of_a_project_it_says_so(tmp_path, monkeypatch, expunge):
    """Without params.yaml the message says where to run."""
    monkeypatch.chdir(tmp_path)

    assert expunge("params") == (2, "", "expunge: params.yaml does not exist; run from the root of the project\n")


def test_a_request_is_added_shown_and_withdrawn(project, expunge):
    """What is added is listed and shown with its id; withdrawn, it is gone and its adapter with it; --dry-run changes nothing."""
    before = (project / "requests.yaml").read_bytes()
    add = ("request", "add", "ghost", "--kind", "character", "--alias", "phantom", "--anchor", "alien")
    assert expunge(*add, "--dry-run")[0] == 0
    assert (project / "requests.yaml").read_bytes() == before

    _, out, _ = expunge(*add)
    request_id = out.strip()
    assert f"{request_id}  ghost  (character)  -> alien" in expunge("request", "list")[1]
    assert json.loads(expunge("request", "show", request_id)[1])["aliases"] == ["phantom"]
    adapter = project / "models/guidance" / request_id
    adapter.mkdir(parents=True)
    assert expunge("request", "remove", request_id, "--dry-run")[0] == 0
    assert adapter.is_dir()
    assert expunge("request", "remove", request_id)[0] == 0
    assert not adapter.exists()
    assert "ghost" not in expunge("request", "list")[1]


def write_evaluation(folder, *, passed):
    def metric(value, n):
        return {"value": value, "n": n, "low": value, "high": value}

    found = {"ua": metric(1.0, 24), "anchor_rate": metric(0.75, 24), "ssim_unrelated": metric(1.0, 32)}
    metrics = {
        "size": "quick", "targets": {"r-1": {"target": "cat", "anchor": "dog", "kind": "object"}},
        "requests": {"r-1": {"gated": found}, "joint": {"gated": found, "filter": {"fpr": metric(0.0035, 4000)}}},
    }  # fmt: skip
    gate = {"metric": "ua", "variant": "gated", "direction": "at_least", "threshold": 0.9 if passed else 1.1, "n": 24}
    Path("requests.yaml").write_text("requests:\n  r-1: {target: cat, kind: object, aliases: [kitty], anchor: dog}\n")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["gates"] = [gate]
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if not (assets := Path("assets")).exists():
        assets.symlink_to(ROOT / "assets")
    judged = {"base": key_of(folder_digests(ROOT / "assets/openmoji")), "params": read_params_digest(), "requests": requests_digest(load_requests())}  # fmt: skip
    verdict = judge_evidence(metrics["requests"], load_requests(), read_section("evaluate", EvaluateParams), judged)
    assert verdict.passed is passed
    (folder / "verdict.json").write_text(canonical(verdict.record()))
    outs = [{"path": f"reports/evaluate/{n}", "md5": dvc_md5(folder / n)} for n in ("metrics.json", "verdict.json")]
    put_lock(evaluate={"outs": outs})


def put_lock(**stages):
    """Makes dvc.lock say more."""
    path = Path("dvc.lock")
    before = yaml.safe_load(path.read_text())["stages"] if path.is_file() else {}
    path.write_text(yaml.safe_dump({"stages": before | stages}))


@pytest.mark.parametrize("passed", [True, False])
def test_verdict_is_a_few_lines_and_an_exit_code(project, expunge, passed):
    """What was erased, what it cost and where the page is; exit code 1 if the verdict is fail; --gates lists every gate by the target's name."""
    write_evaluation(project / "reports/evaluate", passed=passed)
    code, out, _ = expunge("verdict")

    assert code == (0 if passed else 1)
    assert out.splitlines() == [
        f"Verdict: {'pass' if passed else 'FAIL'}. {2 * passed} of 2 gates pass (size quick, variant gated).",
        "cat: gone from 24 of 24 images; dog is drawn instead in 18.",
        "Unrelated prompts: images 1.000 like the base's (SSIM, 1 is equal, n = 32); 14 of 4000 everyday prompts are edited by mistake.",
        'Draw one: expunge generate "a cat beside a castle"',
        "Look at it: reports/evaluate/report.html",
        "Attacks: none yet, and no release passes without: expunge attack",
    ]
    assert f"{'pass' if passed else 'FAIL'}  cat            gated     ua" in expunge("verdict", "--gates")[1]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["metrics.json", "verdict.json"])
def test_verdict_with_an_altered_byte_is_refused(expunge, name):
    """A space more, which changes no value, is not what the evaluation wrote; without dvc.lock nothing says what it wrote."""
    folder = Path("reports/evaluate")
    write_evaluation(folder, passed=True)
    before = (folder / name).read_text()
    (folder / name).write_text(f"{before} ")
    said = expunge("verdict")
    (folder / name).write_text(before)
    Path("dvc.lock").unlink()
    unsaid = expunge("verdict")

    assert (said.code, unsaid.code, said.out, unsaid.out) == (3, 3, "", "")
    assert f"reports/evaluate/{name} is not what its stage wrote (dvc.lock); restore it" in said.error
    assert "dvc.lock is missing or is none; run the stages" in unsaid.error


@pytest.mark.parametrize(
    ("hits", "other", "code", "said"),
    [
        (
            0,
            {},
            0,
            "Attacks: pass. The default withstands attackers up to T1. 0 of 400 attempts succeed (size quick): ",
        ),
        (20, {}, 1, "Attacks: FAIL. The default withstands no tier. 40 of 400 attempts succeed (size quick): "),
        (0, {"filter": "x"}, 1, "Attacks: FAIL. The filter that was attacked is not the one that was evaluated: "),
    ],
)
def test_verdict_says_how_far_attackers_get(project, expunge, hits, other, code, said):
    """The last lines say how far attackers get and what was not tried; attacks that fail, or are on another model, are exit code 1."""
    write_evaluation(project / "reports/evaluate", passed=True)
    judged = json.loads((project / "reports/evaluate/verdict.json").read_text())["judged"]
    params = attack_params("quick")
    content = yaml.safe_load(Path("params.yaml").read_text()) | {"attack": params.model_dump(mode="json")}
    Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    folder = project / "reports/attacks"
    write_attacks(folder, attack_results(params, ["r-1"], judged | other, hits=hits), params)
    assert "reports/attacks/results.json is not what its stage wrote (dvc.lock)" in expunge("verdict").error
    outs = [
        {"path": f"reports/attacks/{name}", "md5": dvc_md5(folder / name)} for name in ("results.json", "verdict.json")
    ]
    put_lock(attack={"outs": outs})
    found = expunge("verdict")

    assert found.code == code
    assert f"\n{said}" in found.out
    last = found.out.splitlines()[-1]
    assert (
        last == ("Not tried: " + ", ".join(json.loads((folder / "verdict.json").read_text())["not_tried"]) + ".")
        or other
    )
    assert "T2 p4d" in last or other


def test_verdict_on_something_else_than_what_is_there_is_refused(project, expunge):
    """A request more, another gate, or another judge than the evaluation read: exit code 3, and no verdict is printed."""
    write_evaluation(project / "reports/evaluate", passed=True)
    (project / "judge").write_text("one")
    lock = yaml.safe_load((project / "dvc.lock").read_text())["stages"]["evaluate"]
    put_lock(
        evaluate=lock | {"deps": [{"path": "judge", "md5": dvc_md5(project / "judge")}, {"path": "gone", "md5": "x"}]}
    )
    assert expunge("verdict").code == 0
    files = {name: (project / name).read_text() for name in ("requests.yaml", "params.yaml", "judge")}
    edits = {
        "requests.yaml": (files["requests.yaml"].replace("kitty", "moggy", 1), "is of other requests than requests.yaml lists"),
        "params.yaml": (files["params.yaml"].replace("\n  batch: 16\n  seed: 0\n  gates", "\n  batch: 3\n  seed: 0\n  gates", 1), "had other parameters than params.yaml has"),
        "judge": ("two", "judge is not what stage evaluate read (dvc.lock); restore it"),
    }  # fmt: skip
    for name, (text, said) in edits.items():
        (project / name).write_text(text)
        found = expunge("verdict")
        (project / name).write_text(files[name])
        assert (found.code, found.out) == (3, ""), name
        assert said in found.error


def test_verdict_of_another_version_is_one_sentence(project, expunge):
    """Metrics without the targets, as earlier versions wrote them, are refused; so is what is no JSON."""
    folder = project / "reports/evaluate"
    write_evaluation(folder, passed=True)
    (folder / "metrics.json").write_text('{"size": "quick", "requests": {}}')
    assert "holds an evaluation of another version; write it again" in expunge("verdict").error
    (folder / "metrics.json").write_text("{")
    said = expunge("verdict")

    assert said.code == 3
    assert "metrics.json is not JSON; write it again" in said.error


def test_generate_writes_a_png(tmp_path, expunge):
    """One image of the base model, 64 by 64; the same seed gives the same bytes, another seed others; --dry-run writes nothing."""
    from PIL import Image

    for name, seed, more in (("one", 3, ()), ("two", 3, ()), ("three", 4, ()), ("four", 3, ("--dry-run",))):
        drawn = (
            "a cat in neon style",
            "--variant",
            "base",
            "--seed",
            seed,
            "--output",
            tmp_path / f"{name}.png",
            *more,
        )
        done = expunge("generate", *drawn, cwd=ROOT)
        assert done.code == 0, done.error  # on a fresh clone too: the base needs neither filter nor adapters

    assert Image.open(tmp_path / "one.png").size == (64, 64)
    assert (
        (tmp_path / "one.png").read_bytes()
        == (tmp_path / "two.png").read_bytes()
        != (tmp_path / "three.png").read_bytes()
    )
    assert not (tmp_path / "four.png").exists()
