import json

import matplotlib.pyplot as plt
import pytest
import torch

from components.sae.losses import fvu
from components.sae.model import SparseAutoencoder, topk
from research.sae.contenders import BASELINE, CONTENDERS, PlainSae, Shape, plain_loss
from research.sae.training import PARTS, plot_parts, profile, run


def test_plain_loss_is_ours_on_the_same_weights():
    """With nothing dead the baseline's scaled MSE is our FVU, and so are its gradients, name by name."""
    torch.manual_seed(0)
    plain, sae, x = PlainSae(8, 32, 4), SparseAutoencoder(8, 32, k=4), torch.randn(64, 8)
    with torch.no_grad():
        plain.b_pre.copy_(x.mean(0))
        plain.b_lat.normal_()
        pairs = {"W_enc": plain.W_enc.T, "b_enc": plain.b_lat, "W_dec": plain.W_dec.T, "b_dec": plain.b_pre}
        for name, value in pairs.items():
            getattr(sae, name).copy_(value)
    pre, _, decoded = plain(x)
    theirs = plain_loss(x, pre, decoded, plain.W_dec, torch.zeros(32).bool(), 1 / (x.mean(0) - x).square().mean())
    mine = fvu(x, sae.decode(topk(sae.pre_activations(x), 4)))
    nothing = plain_loss(x, pre, x, plain.W_dec, torch.zeros(32).bool(), 1.0)  # a perfect reconstruction

    assert nothing.item() == pytest.approx(0)
    # the auxiliary code is empty, so its reconstruction misses all of the residual: 1/32 of exactly 1
    torch.testing.assert_close(theirs - 1 / 32, mine)
    theirs.backward()
    mine.backward()
    for theirs_grad, mine_grad in (
        (plain.W_enc.grad, sae.encoder.grad),
        (plain.W_dec.grad.T, sae.W_dec.grad),
        (plain.b_lat.grad, sae.b_enc.grad),
        (plain.b_pre.grad, sae.b_dec.grad),
    ):
        torch.testing.assert_close(theirs_grad, mine_grad, rtol=1e-4, atol=1e-6)


def test_plain_auxiliary_term_is_ours_up_to_its_denominator():
    """With every latent dead and one token, both terms are |ê - e|²; ours divides by a variance, theirs by |e|²."""
    torch.manual_seed(0)
    plain, x = PlainSae(8, 32, 4), torch.randn(1, 8)
    pre, _, decoded = plain(x)
    found = plain_loss(x, pre, decoded, plain.W_dec, torch.ones(32).bool(), 0.0)
    rebuilt, residual = pre.relu() @ plain.W_dec.T, x - decoded  # 256 exceeds the 32 latents: all of them

    torch.testing.assert_close(32 * found, (rebuilt - residual).square().sum() / residual.square().sum())


def test_quick_run_measures_every_installed_contender(tmp_path):
    """Tiny shapes: the baseline's ratio to itself is exactly 1, ours have speeds, what is missing says so."""
    found = run(Shape(8, 64, 4, 32), torch.device("cpu"), list(CONTENDERS), steps=1, repeats=2, out=tmp_path)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())

    assert [r["contender"] for r in found] == 2 * list(CONTENDERS)
    assert {r["ratio"]["median"] for r in found if r["contender"] == BASELINE} == {1.0}
    assert all(r["tokens_per_second"]["n"] == 2 for r in found if r["contender"].startswith("expunge"))
    assert all((r["tokens_per_second"] is None) == bool(r["why_not"]) for r in found)
    assert record["results"] == found
    assert record["environment"]["versions"]["torch"]


def test_parts_of_a_step_are_all_of_it(tmp_path):
    """A part each for product, ranking, gradients and Adam has time in it, and the plot's bars end where the parts add up to."""
    found = profile(Shape(8, 64, 4, 32), ["expunge topk", "interpret-then-deactivate"], steps=2, out=tmp_path)
    figure = plot_parts(found)
    ends = [bar.get_x() + bar.get_width() for bar in figure.axes[0].containers[-1]]
    plt.close(figure)

    assert all(found["expunge topk"][part] > 0 for part in PARTS)
    assert ends == pytest.approx([sum(spent.values()) for spent in found.values()])
    assert [p.suffix for p in sorted(tmp_path.iterdir())] == [".json", ".png"]
