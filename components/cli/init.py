"""`expunge init` and `expunge base check`: a project for a user's own model, and what keeps a model from being used."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from components.cli.options import DryRun
from components.common.closure import ROOT
from components.common.errors import ArtifactError, StageError, UserError
from components.common.files import write_text
from components.common.inputs import MIB, decode, read_bytes
from components.common.sections import PARAMS, read_section
from components.diffusion.inspect import NAMES, Family, Model, inspect_base
from components.requests.requests import REQUESTS, load_requests
from components.worlds.params import JudgeParams

base = typer.Typer(no_args_is_help=True, help="The model that requests change.")
_IGNORED = (
    "/data/", "/models/", "/reports/evaluate/grids", "/reports/evaluate/report.html", "/reports/attacks/page.html",
    "/reports/probes/*.png", "/mlflow.db", "/ledger.db*", "/mlruns/", "/.cache/", "/.requests.yaml.lock", "/.expunge/",
    "__pycache__/",
)  # fmt: skip
"""What git never takes: what stages make, who asked for what (the ledger), and secrets (.expunge)."""
_BYTES = ("* -text",)
"""The bytes in the repository are the bytes on disk, whatever core.autocrlf says: digests are compared."""
_README = """\
# {name}

A project of [Expunge](https://pypi.org/project/expunge/) that erases concepts from `{base}` ({family}).

```
expunge request preview --target "van gogh" --kind style --anchor "an impressionist oil painting"
expunge request add "van gogh" --kind style --alias "vincent van gogh" --anchor "an impressionist oil painting"
expunge judge check
expunge retrain
expunge verdict --gates
```

`params.yaml` names the judges of the images under `judge`; without one that knows a target nothing is judged.
`dvc.yaml` and `code.json` are written by Expunge; run `python -m flows.deps` after an edit of `world`, `judge` or `base.path`.
"""
_INPUTS = "Prompts (CSV) and reference images that requests bring along: stages that read them depend on this folder.\n"


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the project: new, or without a params.yaml.")
    ],
    base_path: Annotated[str, typer.Option("--base", help="Folder of a diffusers pipeline.")],
    world: Annotated[str, typer.Option(help="A world that ships, or the path of a folder with a world.yaml.")] = "open",
    preset: Annotated[str, typer.Option(help=f"{', '.join(NAMES)}; default by what the model is.")] = "",
    clip: Annotated[Path | None, typer.Option(help="Folder of a transformers CLIP that judges images.")] = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Writes a project for your own model: parameters with their sources, requests, stages, and a README."""
    model = inspect_base(base_path)
    if preset and preset not in get_args(Family):
        raise UserError(f"--preset {preset!r} is unknown", f"use one of: {', '.join(NAMES)}")
    family = cast("Family", preset) if preset else model.family
    if (family == "sdxl") != (model.family == "sdxl"):
        raise UserError(f"{base_path} is {NAMES[model.family]}, and --preset is {family}", "leave --preset out")
    if (folder / PARAMS).exists():
        raise UserError(f"{folder} has a {PARAMS} already", "name another folder, or edit that file")
    from components.cli.presets import REAL_PROMPTS, project_params  # noqa: PLC0415 - slow to import
    from components.worlds.load import load_world  # noqa: PLC0415

    load_world(world)
    _check_there(folder)
    if clip is not None and not (clip / "config.json").is_file():
        raise UserError(f"--clip {clip} is no transformers model (it has no config.json)", "name its folder")
    if clip is not None and not any(clip.glob("*.safetensors")):
        raise UserError(f"--clip {clip} holds no safetensors file", "save it again with save_pretrained")
    for line in model.lines():
        typer.echo(line)
    if dry_run:
        typer.echo(f"would write a project of preset {family} into {folder}")
        return
    at, judge = (None if path is None else _seen_from(folder, path) for path in (model.folder, clip))
    assert at is not None  # a model has a folder
    own = Path(world).is_dir()
    named = _seen_from(folder, Path(world)).as_posix() if own else world
    write_text(folder / PARAMS, project_params(shipped(PARAMS), model, at, named, family, judge))
    _say_memory(model, folder / PARAMS)
    _add_lines(folder / ".gitignore", _IGNORED)
    _add_lines(folder / ".gitattributes", _BYTES)
    readme = _README.format(name=folder.resolve().name, base=at, family=NAMES[family])
    prompts = {REAL_PROMPTS: "real.csv", REAL_PROMPTS.with_suffix(".md"): "README.md"}
    given = [(name, shipped(Path("assets/prompts") / of).read_text(encoding="utf-8")) for name, of in prompts.items()]
    own = ((REQUESTS, "requests: {}\n"), (Path("inputs/README.md"), _INPUTS), (Path("README.md"), readme))
    for name, text in (*own, *given):
        if not (folder / name).exists():  # what is the user's stays
            write_text(folder / name, text)
    _run([sys.executable, "-m", "flows.deps"], folder)
    _dvc_init(folder)
    typer.echo(f"{folder}: a project of preset {family}; next: cd {folder} && expunge request preview --help")
    if judge is None:
        typer.echo(
            "no judge of images is named: give params.yaml one under judge.any, such as {reader: clip, path: FOLDER}"
        )


@base.command("check")
def base_check(
    path: Annotated[str, typer.Argument(help="Folder of a diffusers pipeline.")],
) -> None:
    """Says what a model is, or in one sentence what keeps Expunge from opening it and the command that helps."""
    model = inspect_base(path)
    for line in model.lines():
        typer.echo(line)
    if PARAMS.is_file():
        _say_memory(model, PARAMS)
    if PARAMS.is_file() and not read_section("judge", JudgeParams).files():
        typer.echo(
            "params.yaml names no judge of images: give it one under judge.any, such as {reader: clip, path: FOLDER}"
        )


def _say_memory(model: Model, params: Path) -> None:
    """Prints what each piece of work of a project needs of the accelerator's memory, what to lower where that is too much, and what is left out."""
    from components.cli.memory import needs  # noqa: PLC0415 - used here alone
    from components.cli.params import read_params  # noqa: PLC0415 - slow to import
    from components.cli.presets import left_out  # noqa: PLC0415

    own = read_params(params)
    for need in needs(model, own):
        typer.echo(need.sentence())
    if said := left_out(read_params(shipped(PARAMS)), own):
        typer.echo(said)


def shipped(name: Path) -> Path:
    """A file of the product's root: in the checkout, or where the installed package put it."""
    for path in (ROOT / name, Path(sysconfig.get_path("data")) / "share" / "expunge" / name):
        if path.is_file():
            return path
    raise ArtifactError(
        f"the installed package has no {name}", "install it again: pip install --force-reinstall expunge"
    )


def _check_there(folder: Path) -> None:
    """`UserError` for a file of the user's that would stay, or be added to, and cannot be read."""
    if (folder / REQUESTS).exists():
        load_requests(folder / REQUESTS)
    for name in (".gitignore", ".gitattributes"):
        _read_lines(folder / name)


def _read_lines(path: Path) -> str:
    return decode(read_bytes(path, MIB), path) if path.exists() else ""


def _add_lines(path: Path, lines: Sequence[str]) -> None:
    """Adds the lines that a text file lacks, or makes it."""
    before = _read_lines(path)
    missing = [line for line in lines if line not in before.splitlines()]
    if missing:
        end = "" if before.endswith("\n") or not before else "\n"
        write_text(path, before + end + "".join(f"{line}\n" for line in missing))


def _seen_from(folder: Path, path: Path) -> Path:
    """`path` as the project names it: relative if it lies inside, otherwise absolute."""
    whole, inside = path.resolve(), folder.resolve()
    return whole.relative_to(inside) if whole.is_relative_to(inside) else whole


def _dvc_init(folder: Path) -> None:
    """Makes the folder a git and DVC repository where it is none."""
    if (folder / ".dvc").is_dir():
        return
    inside = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], cwd=folder, capture_output=True, text=True, check=False
    )
    if inside.returncode:
        _run(["git", "init", "--quiet"], folder)
    below = inside.returncode == 0 and Path(inside.stdout.strip()).resolve() != folder.resolve()
    dvc = str(Path(sys.executable).parent / "dvc")
    _run([dvc, "init", "--quiet", *(["--subdir"] if below else [])], folder)


def _run(command: list[str], folder: Path) -> None:
    """Runs a program in the project; `StageError` if it fails."""
    code = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=code)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise StageError(f"{' '.join(command)} failed ({said[-1]})", f"mend it and run it again in {folder}")
