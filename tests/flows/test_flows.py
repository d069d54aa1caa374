import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from components.common.process import stream
from flows.dag import stage_order
from flows.deps import main

ROOT = Path(__file__).parents[2]


def test_stage_order_is_the_graph_of_dvc_yaml():
    """Every stage comes after those whose outputs it reads, and all stages of dvc.yaml but the frozen one are there."""
    order = stage_order(ROOT)
    requests = yaml.safe_load((ROOT / "requests.yaml").read_text())["requests"]

    assert set(order) == {"base", "corpus", "sae", "concepts", "features", "evaluate", "attack", "export"} | {
        f"guidance@{r}" for r in requests
    }
    for before, after in (
        ("base", "sae"),
        ("corpus", "sae"),
        ("sae", "features"),
        ("features", "evaluate"),
        ("features", "export"),
    ):
        assert order.index(before) < order.index(after)
    assert all(order.index("concepts") < order.index(f"guidance@{r}") < order.index("evaluate") for r in requests)


def test_stream_passes_lines_and_status():
    """Both outputs arrive line by line, and the exit status comes back."""
    lines = []
    status = stream(
        [sys.executable, "-c", "import sys; print('one'); sys.stderr.write('two\\n'); exit(3)"], ROOT, lines.append
    )

    assert status == 3
    assert sorted(lines) == ["one", "two"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def test_stream_interrupted_ends_the_whole_group():
    """When the caller is interrupted, the child and its children end too."""
    pids = []
    program = "import os, subprocess, time; c = subprocess.Popen(['sleep', '60']); print(os.getpid(), c.pid, flush=True); time.sleep(60)"

    def line(text):
        pids.extend(int(p) for p in text.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", program], ROOT, line)

    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(p) for p in pids))


def test_stream_parent_killed_outright_ends_the_child():
    """SIGKILL of the flow leaves no stage behind."""
    program = (
        "import sys; from pathlib import Path; from components.common.process import stream\n"
        "stream([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'], Path('.'), "
        "lambda text: print(text, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert wait_until(lambda: not alive(child))


def test_deps_are_written_where_they_lack(tmp_path, monkeypatch):
    """`make deps` puts a missing file and the world's back, drops one that no code reaches, keeps comments and data; --check only tells."""
    for name in ("components", "dvc.yaml", "params.yaml"):
        source = ROOT / name
        _ = shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    path = tmp_path / "dvc.yaml"
    whole = path.read_text()
    lacking = whole.replace("      - components/sae/losses.py\n", "", 1)
    lacking = lacking.replace("      - components/worlds/${world}/world.yaml\n", "      - components/cli/main.py\n", 1)
    assert lacking != whole
    path.write_text(lacking)
    monkeypatch.setattr(sys, "argv", ["deps", "--check"])
    assert main(tmp_path) == 1
    assert path.read_text() == lacking

    monkeypatch.setattr(sys, "argv", ["deps"])
    assert main(tmp_path) == 0
    assert path.read_text() == whole
    monkeypatch.setattr(sys, "argv", ["deps", "--check"])
    assert main(tmp_path) == 0
