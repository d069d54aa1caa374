"""What a release is worth elsewhere: does another place draw the same images, does a fresh clone rebuild the same bytes?

    python -m research.releases fetched      # registered through an MLflow server, fetched in another folder with another home
    python -m research.releases reproduced   # every stage from scratch on a fresh clone of the commit; takes as long as a retrain

Both need a project in which no stage would run again, and write their row of `reports/operations/show.json`. `reproduced` needs a
commit that holds all code.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from research.reliability.show import share
from research.show import publish

ROOT = Path(__file__).parents[1]
OUT = Path("reports/operations/show.json")
PROMPTS = (
    "a cat",
    "a kitten on a sofa",
    "a castle in neon style",
    "a dog",
    "a green apple",
    "two ships at sea",
    "a lion",
    "",
)
DRAW = """
import sys
from pathlib import Path
from expunge import Eraser
source, base, out, *prompts = sys.argv[1:]
eraser = Eraser.open(source) if base == "open" else Eraser.from_release(source, base=base)
for index, prompt in enumerate(prompts):
    Path(out, f"{index}.raw").write_bytes(eraser.draw(prompt, seed=index).image.tobytes())
"""


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The URL of an MLflow server on a free loopback port that keeps everything in `folder`; it is gone after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", server)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes], patience: float = 240.0) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{url} does not answer")


def elsewhere(home: Path, uri: str, *arguments: object) -> str:
    """What a Python command prints in the folder `home`, which is also its home, with nothing of this project but its code."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "EXPUNGE_CACHE")}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=home, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def fetched(root: Path) -> None:
    """How many of eight images differ after the release went through the server."""
    from components.common.sections import read_section  # noqa: PLC0415
    from components.diffusion.params import BaseParams  # noqa: PLC0415 - what `reproduced` does not need
    from components.registry.registry import Registry  # noqa: PLC0415
    from components.registry.release import build_release  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in ("server", "here", "there", "home")}
        for folder in folders.values():
            folder.mkdir()
        with mlflow_server(folders["server"]) as uri:
            os.environ["MLFLOW_TRACKING_URI"] = uri
            Registry(root).register(build_release(root, Path(scratch) / "release"))
            base = (root / read_section("base", BaseParams).path).resolve()
            elsewhere(folders["home"], uri, "-c", DRAW, "models:/expunge/1", base, folders["there"], *PROMPTS)
            elsewhere(folders["home"], uri, "-c", DRAW, root.resolve(), "open", folders["here"], *PROMPTS)
        images = [
            tuple((folders[at] / f"{i}.raw").read_bytes() for at in ("here", "there")) for i in range(len(PROMPTS))
        ]
    differ = sum(here != there for here, there in images)
    what = (
        "images that differ when the candidate is fetched through the MLflow server in another folder with another home"
    )
    command = "python -m research.releases fetched"
    publish([share(what, differ, len(images), command)], OUT)


def reproduced(root: Path) -> None:
    """How many digests differ after every stage ran again on a fresh clone."""
    from components.registry.release import build_release  # noqa: PLC0415 - as above
    from components.registry.reproduce import reproduce  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        release = build_release(root, Path(scratch) / "release")
        found = reproduce(release, root, Path(scratch) / "clone", print, from_scratch=True)
    what = "digests that differ after expunge reproduce on a fresh clone, same machine"
    command = "python -m research.releases reproduced"
    publish([share(what, len(found.differences), found.compared, command)], OUT)
    for difference in found.differences:
        print(difference)  # noqa: T201 - a program that prints what it found


if __name__ == "__main__":
    {"fetched": fetched, "reproduced": reproduced}[sys.argv[1]](Path())
