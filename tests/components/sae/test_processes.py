import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys, torch
from pathlib import Path
from components.sae.activations import ActivationStore
from components.sae.model import SparseAutoencoder
from components.sae.params import SaeParams
from components.sae.train import train_sae
torch.set_num_threads(1)
folder = Path(sys.argv[1])
params = SaeParams(activation="batchtopk", d_sae=32, k=4, steps=5, batch=64, lr=0.01, auxk=4, auxk_coefficient=0.03,
                   dead_after=200, padding=0.1, seed=0)
sae = SparseAutoencoder(8, 32, k=4)
steps = list(train_sae(sae, ActivationStore(folder / "tokens.f32", 8), params))
from accelerate import PartialState
state = PartialState()
(folder / f"{state.process_index}of{state.num_processes}.txt").write_text(
    " ".join(f"{v:.9g}" for t in sae.state_dict().values() for v in t.flatten().tolist())
)
"""


@pytest.mark.timeout(300)
def test_two_processes_train_one_autoencoder(tmp_path):
    """Two processes that see different batches end in the same weights, and not in those of one process alone."""
    rng = np.random.default_rng(0)
    (tmp_path / "tokens.f32").write_bytes(rng.normal(size=(600, 8)).astype(np.float32).tobytes())
    (tmp_path / "program.py").write_text(PROGRAM)
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
        subprocess.run(
            [sys.executable, *launch, str(tmp_path / "program.py"), str(tmp_path)],
            cwd=ROOT, check=True, capture_output=True, env={"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        )  # fmt: skip

    first, second, alone = ((tmp_path / f"{name}.txt").read_text() for name in ("0of2", "1of2", "0of1"))
    assert first == second
    assert first != alone
