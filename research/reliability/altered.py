"""Alters one byte in each kind of artifact and runs every command that reads it: each must refuse, in one sentence."""

from __future__ import annotations

import importlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from tqdm import tqdm

from components.cli.main import main
from components.common.artifacts import read_artifact
from components.common.errors import ExpungeError
from components.common.files import SIDECAR
from components.export.runtime import read_report
from components.registry.lock import check_written
from components.sae.model import read_sae
from research.reliability.show import share
from research.show import Row

ROOT = Path(__file__).parents[2]
PROMPT, OUT = "a cat on a hill", "out.png"
GENERATE, EXPLAIN = ("generate", PROMPT, "--output", OUT), ("explain", PROMPT)
EXPORT, ADAPTER = ("export", "diffusers", "exported"), ("export", "adapter", "fused", "--dry-run")
Reader = tuple[str, ...] | Callable[[], object]
BASE: tuple[Reader, ...] = (GENERATE, EXPORT)


def _judge() -> None:
    importlib.import_module("components.worlds.openmoji.judge").Judge.load(Path("assets/openmoji/judge"))


def _clip() -> None:
    clip = importlib.import_module("components.worlds.openmoji.clip")
    read_artifact(Path("assets/clip"), clip.FORMAT)


KINDS: dict[str, tuple[Reader, ...]] = {
    "models/filter/model.safetensors": (GENERATE, EXPLAIN),
    f"models/filter/{SIDECAR}": (GENERATE, EXPLAIN),
    "models/guidance/*/pytorch_lora_weights.safetensors": (GENERATE, EXPORT, ADAPTER),
    f"models/guidance/*/{SIDECAR}": (GENERATE, EXPORT, ADAPTER),
    "models/sae/sae_weights.safetensors": (lambda: read_sae(Path("models/sae")),),
    f"models/sae/{SIDECAR}": (lambda: read_sae(Path("models/sae")),),
    "models/sae/cfg.json": (lambda: check_written(Path(), [Path("models/sae")]),),  # SAELens reads it, we register it
    "models/onnx/filter.onnx": (lambda: read_report(Path("models/onnx/filter.onnx")),),
    "models/onnx/parity.json": (lambda: read_report(Path("models/onnx/filter.onnx")),),
    "reports/evaluate/verdict.json": (("verdict",),),
    "reports/evaluate/metrics.json": (("verdict",),),
    "assets/openmoji/judge/*.safetensors": (_judge,),
    f"assets/openmoji/judge/{SIDECAR}": (_judge,),
    "assets/clip/*.safetensors": (_clip,),
    f"assets/clip/{SIDECAR}": (_clip,),
    "assets/openmoji/unet/*.safetensors": BASE,
    "assets/openmoji/vae/*.safetensors": BASE,
    "assets/openmoji/text_encoder/*.safetensors": (*BASE, EXPLAIN),
    "assets/openmoji/tokenizer/tokenizer.json": (*BASE, EXPLAIN),
    "assets/openmoji/scheduler/scheduler_config.json": BASE,
}
"""What is altered, and what reads it: a command, or a function of the library."""


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
            return 5, f"{type(found).__name__}: {found}"
    return 0, ""


def project(folder: Path) -> None:
    """A copy of this project's artifacts, as their stages wrote them."""
    for name in (
        "models",
        "assets",
        "reports/evaluate",
        "components",
        "params.yaml",
        "requests.yaml",
        "dvc.yaml",
        "dvc.lock",
    ):
        source = ROOT / name
        _ = shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)


def measure_altered(times: int, seed: int, command: str, kinds: Sequence[str] = ()) -> list[Row]:
    """The rows of `times` altered bytes in each kind."""
    rng = random.Random(seed)
    believed = traced = n = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        folder.mkdir()
        project(folder)
        with chdir(folder):
            for pattern, readers in tqdm(KINDS.items()):
                if kinds and not any(kind in pattern for kind in kinds):
                    continue
                path = next(iter(sorted(Path().glob(pattern))))
                whole = path.read_bytes()
                for _ in range(times):
                    altered = bytearray(whole)
                    at = rng.randrange(len(altered))
                    altered[at] ^= 1 << rng.randrange(8)
                    path.write_bytes(altered)
                    for reader in readers:
                        code, said = ends(reader)
                        n += 1
                        believed += code in (0, 1) or Path(OUT).exists()
                        traced += code == 5
                        if code not in (2, 3, 4):
                            tqdm.write(
                                f"{path}, byte {at}, {reader if isinstance(reader, tuple) else 'library'}: {code} {said[:200]}"
                            )
                        Path(OUT).unlink(missing_ok=True)
                        shutil.rmtree("exported", ignore_errors=True)
                    path.write_bytes(whole)

    return [
        share("altered byte: commands that went on", believed, n, command),
        share("altered byte: tracebacks", traced, n, command),
    ]
