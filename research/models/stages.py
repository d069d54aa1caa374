"""Every stage and every command that reads the user's model, on each stand-in, in a process of its own: what it ends with.

A run works (exit code 0, or 1 where a verdict or a gate fails), or refuses: exit code 2, 3 or 4 and one sentence. Anything else is
a traceback. Each stand-in gets a project of its own, made as docs/your-model.md says, with a random CLIP as its judge.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from components.common.toplevel import UNFORESEEN
from research.reliability.show import Row, share
from tests.smallclip import write_clip
from tests.standins import KINDS, SMALL, build_standin

ROOT = Path(__file__).parents[2]
OTHER = {"sd15": "sd21", "sd21": "sdxl", "sdxl": "sd15"}
"""For each stand-in another, for which its artifacts were not made."""
SEARCH = {
    "attacks": ["slips", "ring-a-bell", "adaptive"], "variants": ["gated"], "against": ["gated"], "attempts": 2, "tries": 2,
    "seeds": 1, "iterations": 1, "candidates": 2, "tokens": 3, "similarity": 0.9, "clean": 2, "known": 4,
    "gates": [{"tier": "T0", "at_most": 0.5, "n": 2}],
}  # fmt: skip
PROBE = {
    "probes": ["completion", "inpainting", "added-noise", "start-latent", "purification", "textual-inversion", "relearning"],
    "variants": ["gated"], "images": 2, "steps": 2, "strength": 0.7, "inversions": 1, "inversion_steps": 1,
    "relearning_steps": 1, "every": 1, "known": 4, "recovered": 0.4,
}  # fmt: skip
SEARCHES = {
    "attack": {"sizes": {"quick": SEARCH}, "size": "quick", "batch": 8},
    "probe": {"sizes": {"quick": PROBE}, "size": "quick", "batch": 8},
}
VAN_GOGH = ("van gogh", "--kind", "style", "--alias", "vincent van gogh", "--anchor", "an impressionist oil painting")


class Run(NamedTuple):
    """One program and what it ended with."""

    words: tuple[str, ...]
    code: int
    said: str
    """What it wrote to stderr."""

    @property
    def end(self) -> str:
        """works, refuses or traceback."""
        unforeseen = any(sign in self.said for sign in ("Traceback (most recent call last)", "expunge: unforeseen"))
        if self.code == UNFORESEEN or self.code < 0 or unforeseen:  # a stage's own code is not that of `expunge run`
            return "traceback"
        if self.code in (0, 1):
            return "works"
        sentences = [line for line in self.said.splitlines() if line.startswith("expunge: ")]
        return "refuses" if len(sentences) == 1 else "traceback"


def run(folder: Path, *words: str) -> tuple[Run, str]:
    """(what `expunge WORDS` ended with in `folder`, what it printed)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "expunge", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = Run(words, done.returncode, done.stdout + done.stderr if words[0] == "run" else done.stderr)
    tqdm.write(f"{folder.name:<8} {found.end:<10} {done.returncode} expunge {' '.join(words)}")
    if found.end != "works":
        tqdm.write(f"    {(found.said.strip().splitlines() or ['nothing'])[-1]}")
    return found, done.stdout


def use(kind: str, work: Path) -> Iterator[tuple[str, Run]]:
    """Each ("stages" or "commands", run) of the project of one stand-in, in the order in which a user comes by it."""
    model, other = f"models/{kind}", f"models/{OTHER[kind]}"
    for name in (kind, OTHER[kind]):
        build_standin(name, work / "models" / name)
    write_clip(work / "models" / "clip")
    project = work / kind

    def command(*words: str, folder: Path = project) -> tuple[str, Run]:
        return "commands", run(folder, *words)[0]

    yield command("base", "check", model, folder=work)
    yield command("init", kind, "--base", model, "--clip", "models/clip", folder=work)
    yield command("request", "preview", "--target", *VAN_GOGH)
    added, printed = run(project, "request", "add", *VAN_GOGH, "--neighbour", "claude monet")
    yield "commands", added
    one = printed.strip()
    snoopy, _ = run(project, "request", "add", "snoopy", "--kind", "character", "--channel", "filter")
    yield "commands", snoopy
    yield command("request", "list")
    yield command("request", "show", one)
    yield command("request", "preview", one, "--suggest")
    yield command("judge", "check")
    shrink(project)
    for words in (["add", "--all"], ["-c", "user.name=u", "-c", "user.email=u@u", "commit", "--quiet", "-m", "start"]):
        subprocess.run(["git", *words], cwd=project, check=True)  # `expunge check` asks for a commit
    yield command("params")
    yield command("check")
    yield command("generate", "a dog")  # nothing is trained yet: refused
    yield command("verdict")  # nothing is evaluated yet: refused
    for stage, entry in yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        yield "stages", run(project, "run", f"{stage}@{one}" if "foreach" in entry else stage)[0]
    yield command("run", "export", "--dry-run")
    yield command("retrain", "--dry-run")
    yield command("verdict", "--gates")
    for variant in ("base", "filter", "guidance", "summed", "gated"):
        yield command("generate", "a house by van gogh", "--variant", variant, "--output", f"{variant}.png")
    yield command("explain", "#! a house by van gogh")
    yield command("explain", "a house", "--json")
    yield command("purify", "gated.png", "--output", "pure.png", "--steps", "2")
    yield command("export", "diffusers", "out")
    yield command("export", "adapter", "lora")
    yield command("export", "adapter", "kohya", "--format", "kohya")
    yield command("attack", "--request", one)
    yield command("probe", "--request", one)
    yield command("request", "remove", one, "--dry-run")
    yield from refusals(project, one, other, command)


def refusals(project: Path, one: str, other: str, command: Any) -> Iterator[tuple[str, Run]]:  # noqa: ANN401 - of `use`
    """Wrong input, and every command that reads the model after base.path names another one."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (31, 64, 3), dtype=np.uint8)).save(project / "odd.png")
    (project / "no.png").write_bytes(b"no image")
    yield command("generate", "a cat", "--variant", "both")
    yield command("purify", "odd.png")
    yield command("purify", "no.png")
    yield command("export", "adapter", "lora", "--request", "r-none")
    yield command("run", "guidance@r-none")
    yield command("request", "add", "")
    yield command("release", "show", "1")
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    wrong = params | {"base": params["base"] | {"hookpoint": "encoder.layers.99"}}
    path.write_text(yaml.safe_dump(wrong, sort_keys=False), encoding="utf-8")
    yield command("explain", "a house")
    wrong = params | {"base": params["base"] | {"path": f"../{other}"}}
    path.write_text(yaml.safe_dump(wrong, sort_keys=False), encoding="utf-8")
    for words in (
        ("generate", "a house"), ("explain", "a house"), ("purify", "gated.png"), ("export", "diffusers", "other"),
        ("export", "adapter", "other"), ("verdict",), ("attack", "--request", one), ("probe", "--request", one),
    ):  # fmt: skip
        yield command(*words)


def shrink(project: Path) -> None:
    """Small numbers in params.yaml, and a judge of images of 64 pixels whose word counts whatever it says."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, values in (SMALL | SEARCHES).items():
        params[section] |= values
    params["judge"]["any"][0]["sizes"] = [16, 512]
    params["judge"] |= {"sensitivity": 0.0, "specificity": 0.0, "disagreement": 1.0}
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def measure_stages(count: int, command: str) -> list[Row]:
    """Stages and commands on `count` of the stand-ins: how many end with a traceback, and stages that do not work."""
    ends: Counter[tuple[str, str]] = Counter()
    for kind in KINDS[:count]:
        with tempfile.TemporaryDirectory() as work:
            ends.update((part, found.end) for part, found in use(kind, Path(work)))
    rows = []
    for part in ("stages", "commands"):
        works, refuses, failed = (ends[part, end] for end in ("works", "refuses", "traceback"))
        tqdm.write(f"{part}: {works} work, {refuses} refuse in one sentence, {failed} end otherwise")
        what = f"{part} × {{{', '.join(KINDS[:count])}}}: runs that neither work nor refuse in one sentence"
        rows.append(share(what, failed, works + refuses + failed, command))
    total = sum(ends["stages", end] for end in ("works", "refuses", "traceback"))
    what = f"stages × {{{', '.join(KINDS[:count])}}}: runs that do not work"
    return [*rows, share(what, total - ends["stages", "works"], total, command)]
