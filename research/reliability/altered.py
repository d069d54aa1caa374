"""Alters one byte in each kind of artifact and runs every command that reads it: each must refuse, in one sentence."""

from __future__ import annotations

import importlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import yaml
from tqdm import tqdm

from components.cli.main import main
from components.common.artifacts import read_artifact
from components.common.errors import ExpungeError
from components.common.files import SIDECAR
from components.common.toplevel import UNFORESEEN
from components.export.runtime import read_report
from components.registry.release import build_release
from components.sae.model import read_sae
from research.reliability.show import share
from research.show import Row

ROOT = Path(__file__).parents[2]
PROMPT, OUT, PHOTO, RELEASE = "a cat on a hill", "out.png", "photo.png", "release"
GENERATE, EXPLAIN, VERDICT = ("generate", PROMPT, "--output", OUT), ("explain", PROMPT), ("verdict",)
EXPORT, ADAPTER = ("export", "diffusers", "exported"), ("export", "adapter", "fused", "--dry-run")
PURIFY, JUDGE = ("purify", PHOTO, "--steps", "2", "--output", OUT), ("judge", "check")
RELEASED = tuple((*command, "--release", f"./{RELEASE}") for command in (GENERATE, EXPLAIN))
Reader = tuple[str, ...] | Callable[[], object]


def register() -> None:
    """What registering a candidate begins with."""
    build_release(Path(), Path("another"))


def _judge() -> None:
    importlib.import_module("components.worlds.openmoji.judge").Judge.load(Path("assets/openmoji/judge"))


def _clip() -> None:
    clip = importlib.import_module("components.worlds.openmoji.clip")
    read_artifact(Path("assets/clip"), clip.FORMAT)


def _sae() -> None:
    read_sae(Path("models/sae"))


def _graph() -> None:
    read_report(Path("models/onnx/filter.onnx"))


BASE: tuple[Reader, ...] = (GENERATE, EXPORT, PURIFY, VERDICT, register)
KINDS: dict[str, tuple[Reader, ...]] = {
    "models/filter/model.safetensors": (GENERATE, EXPLAIN, VERDICT, register),
    f"models/filter/{SIDECAR}": (GENERATE, EXPLAIN, VERDICT, register),
    "models/guidance/*/pytorch_lora_weights.safetensors": (GENERATE, EXPORT, ADAPTER, PURIFY, VERDICT, register),
    f"models/guidance/*/{SIDECAR}": (GENERATE, EXPORT, ADAPTER, PURIFY, VERDICT, register),
    "models/sae/sae_weights.safetensors": (_sae, register),
    f"models/sae/{SIDECAR}": (_sae, register),
    "models/sae/cfg.json": (register,),
    "models/onnx/filter.onnx": (_graph, register),
    "models/onnx/parity.json": (_graph, register),
    "data/base/*.json": (VERDICT, register),
    "data/concepts/*/request.json": (GENERATE, VERDICT, register),
    "reports/evaluate/verdict.json": (VERDICT, register),
    "reports/evaluate/metrics.json": (VERDICT, register),
    "reports/attacks/verdict.json": (VERDICT, register),
    "reports/attacks/results.json": (VERDICT, register),
    "requests.yaml": (VERDICT, register),
    "params.yaml": (register,),
    "assets/openmoji/judge/*.safetensors": (_judge, JUDGE, VERDICT, register),
    f"assets/openmoji/judge/{SIDECAR}": (_judge, JUDGE, VERDICT, register),
    "assets/clip/*.safetensors": (_clip, VERDICT, register),
    f"assets/clip/{SIDECAR}": (_clip, VERDICT, register),
    f"assets/openmoji/{SIDECAR}": BASE,
    "assets/openmoji/unet/*.safetensors": BASE,
    "assets/openmoji/vae/*.safetensors": BASE,
    "assets/openmoji/text_encoder/*.safetensors": (*BASE, EXPLAIN),
    "assets/openmoji/tokenizer/tokenizer.json": (*BASE, EXPLAIN),
    "assets/openmoji/scheduler/scheduler_config.json": BASE,
    f"{RELEASE}/*.json": RELEASED,
    f"{RELEASE}/*.yaml": RELEASED,
    f"{RELEASE}/dvc.lock": RELEASED,
    f"{RELEASE}/filter/*": RELEASED,
    f"{RELEASE}/adapters/*/*": RELEASED,
    f"{RELEASE}/onnx/*": RELEASED,
    f"{RELEASE}/report/*.json": RELEASED,
    f"{RELEASE}/report/attacks/*.json": RELEASED,
}
"""What is altered, and what reads it: a command, or a function of the library."""
MEANING = ("requests.yaml", "params.yaml")
"""Files in which a byte of a comment is the user's own business: only what they say is altered."""
READ = (
    "requests", "world", "base", "judge", "corpus", "concepts", "sae", "features", "guidance", "evaluate", "attack", "export",
)  # fmt: skip
"""What stages read of these files."""
COPIED = (
    "models", "assets", "data", "reports/evaluate", "reports/attacks", "components", "flows",
    "params.yaml", "requests.yaml", "dvc.yaml", "dvc.lock",
)  # fmt: skip
REFUSALS = (2, 3, 4)


def ends(reader: Reader) -> tuple[int, str]:
    """(exit code, stderr) of a command in this process, or of a function as if it were one."""
    error = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(error):
        try:
            if callable(reader):
                reader()
            else:
                with patch.object(sys, "argv", ["expunge", *reader]):
                    main()
        except SystemExit as end:
            return int(end.code or 0), error.getvalue()
        except ExpungeError as found:
            return found.exit_code, str(found)
        except Exception as found:  # noqa: BLE001 - what is counted
            return UNFORESEEN, f"{type(found).__name__}: {found}"
    return 0, ""


def project(folder: Path) -> None:
    """A copy of this project with its artifacts, as their stages wrote them, and the release that is made of them in `release`."""
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in COPIED:
        source = ROOT / name
        _ = shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else shutil.copy(source, folder / name)  # fmt: skip
    shutil.copy(ROOT / "reports/evaluate/grids/00.png", folder / PHOTO)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def bit_changed(path: Path, whole: bytes, rng: random.Random) -> tuple[int, bytes]:
    """A place in the file, and its bytes with one bit of that one changed."""
    while True:
        at = rng.randrange(len(whole))
        altered = bytearray(whole)
        altered[at] ^= 1 << rng.randrange(8)
        if path.name not in MEANING or path.parent.name == RELEASE or says(bytes(altered)) != says(whole):
            return at, bytes(altered)


def says(content: bytes) -> object:
    """What a YAML file says to stages; the bytes where it says nothing."""
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError):
        return content
    return {k: v for k, v in found.items() if k in READ} if isinstance(found, dict) else content


def measure_altered(times: int, seed: int, command: str, kinds: Sequence[str] = ()) -> list[Row]:
    """The rows of `times` altered bytes in each kind; a kind of several files has one of them altered each time."""
    rng = random.Random(seed)
    believed = traced = n = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        folder.mkdir()
        project(folder)
        with chdir(folder):
            build_release(Path(), Path(RELEASE))
            unsound = [reader for reader in {*sum(KINDS.values(), ())} if ends(reader)[0] not in (0, 1)]
            if unsound:
                raise SystemExit(f"nothing is altered, and this does not work: {unsound}")
            _clean()
            for pattern, readers in tqdm(KINDS.items()):
                if kinds and not any(kind in pattern for kind in kinds):
                    continue
                for _ in range(times):
                    path = rng.choice(sorted(p for p in Path().glob(pattern) if p.is_file()))
                    whole = path.read_bytes()
                    at, altered = bit_changed(path, whole, rng)
                    path.write_bytes(altered)
                    for reader in readers:
                        code, said = ends(reader)
                        n += 1
                        believed += code not in REFUSALS or Path(OUT).exists()
                        traced += code == UNFORESEEN
                        if code not in REFUSALS:
                            who = reader if isinstance(reader, tuple) else reader.__name__
                            tqdm.write(f"{path}, byte {at}, {whole[at : at + 20]!r}, {who}: {code} {said[:200]}")
                        _clean()
                    path.write_bytes(whole)

    return [
        share("altered byte: commands that went on", believed, n, command),
        share("altered byte: tracebacks", traced, n, command),
    ]


def _clean() -> None:
    """Takes away what readers that went on have written."""
    for name in ("exported", "fused", "another"):
        shutil.rmtree(name, ignore_errors=True)
    for path in Path().glob(f"{Path(OUT).stem}*.png"):
        path.unlink()
