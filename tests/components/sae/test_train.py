import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from components.sae import train
from components.sae.activations import ActivationStore
from components.sae.model import SparseAutoencoder
from components.sae.params import SaeParams
from components.sae.train import auxiliary_loss, evaluate_sae, geometric_median, train_sae

GOLDEN = Path(__file__).parents[2] / "golden" / "sae.json"
PARAMS = SaeParams(
    activation="batchtopk", d_sae=32, k=4, steps=10, batch=64, lr=0.01, auxk=4, auxk_coefficient=0.03,
    dead_after=200, padding=0.1, seed=0,
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(12, 8))
    tokens = (rng.random((600, 12)) < 0.2) * rng.random((600, 12)) @ parts
    (tmp_path / "tokens.f32").write_bytes(tokens.astype(np.float32).tobytes())
    return ActivationStore(tmp_path / "tokens.f32", 8)


def run(store, params=PARAMS, **options):
    sae = SparseAutoencoder(8, params.d_sae, k=params.k)
    return sae, list(train_sae(sae, store, params, **options))


def test_train_same_seed_same_bytes(store):
    """Two runs with one seed end in equal tensors; another seed ends elsewhere."""
    one, two, other = (run(store, PARAMS.model_copy(update={"seed": s}))[0] for s in (0, 0, 1))

    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.W_dec, other.W_dec)


def test_train_killed_and_resumed_ends_in_the_same_bytes(store, tmp_path):
    """A run that is abandoned after its checkpoint and started again equals one that was not, and tells of all its steps."""
    whole, expected = run(store)
    loop = train_sae(SparseAutoencoder(8, 32, k=4), store, PARAMS, checkpoint=tmp_path / "c.safetensors", every=4)
    for _ in range(6):
        next(loop)
    resumed, steps = run(store, checkpoint=tmp_path / "c.safetensors")

    assert steps == expected
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_train_golden_losses(store):
    """Ten steps give the losses on file: a refactoring must not move them."""
    found = [step.fvu for step in run(store)[1]]
    if os.environ.get("EXPUNGE_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"fvu": found}) + "\n")

    assert found == pytest.approx(json.loads(GOLDEN.read_text())["fvu"], rel=1e-3)


def test_train_explains_sparse_data(store):
    """Three hundred steps on data of twelve sparse parts leave under a tenth of the variance unexplained."""
    sae, steps = run(store, PARAMS.model_copy(update={"steps": 300}))

    assert steps[-1].fvu < 0.1 < steps[0].fvu
    assert evaluate_sae(sae, store)["fvu"] < 0.15


def test_stored_form_fires_about_k_latents(store):
    """JumpReLU with the trained threshold keeps the average number of active latents near k."""
    sae, _ = run(store, PARAMS.model_copy(update={"steps": 300}))

    assert evaluate_sae(sae, store)["l0"] == pytest.approx(PARAMS.k, rel=0.35)


def test_dead_latents_are_counted_in_tokens(store):
    """With 64 tokens a step and a limit of 200, no latent can be dead before the fourth step."""
    _, steps = run(store)

    assert [s.dead_fraction for s in steps[:3]] == [0.0, 0.0, 0.0]


def test_geometric_median_resists_an_outlier():
    """By hand: of 0, 0, 0 and 100 the geometric median is 0, the mean 25."""
    x = torch.tensor([[0.0], [0.0], [0.0], [100.0]])

    assert geometric_median(x).item() == pytest.approx(0, abs=0.1)


def test_auxiliary_loss_of_chosen_entries_equals_the_dense_form(monkeypatch):
    """Where dead latents are many, loss and all gradients are those of the dense product over them, differentiated by torch."""
    rng, found = torch.Generator().manual_seed(0), {}
    x, residual, dead = torch.randn(20, 8, generator=rng), torch.randn(20, 8, generator=rng), torch.arange(64) % 2 == 0
    sae = SparseAutoencoder(8, 64, k=4)
    sae.initialise(torch.randn(8, generator=rng), torch.randn(64, 8, generator=rng))
    for dense in (0, 64):
        monkeypatch.setattr(train, "DENSE", dense)
        sae.zero_grad()
        loss = auxiliary_loss(sae, x, residual, dead, 3, sae.pre_activations(x).detach())
        loss.backward()
        found[dense] = [loss.detach(), *(p.grad for p in sae.parameters())]

    assert all(value.abs().sum() > 0 for value in found[0])
    torch.testing.assert_close(found[0], found[64])
