import pytest
import torch

from components.common.files import new_folder
from components.sae.losses import auxk_loss, fvu
from components.sae.model import SparseAutoencoder, batch_topk, read_sae, topk, write_sae


def small(architecture="jumprelu", k=2):
    sae = SparseAutoencoder(4, 6, k=k, architecture=architecture)
    sae.initialise(torch.zeros(4), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    return sae.requires_grad_(False)


def test_topk_keeps_the_largest_positive_entries():
    """By hand: of (3, -1, 2, 1) with k = 2 stay 3 and 2; a row without two positives keeps fewer."""
    pre = torch.tensor([[3.0, -1.0, 2.0, 1.0], [-3.0, -1.0, -2.0, 1.0]])

    assert topk(pre, 2).tolist() == [[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 1.0]]


def test_batch_topk_shares_the_budget_over_the_batch():
    """By hand: with k = 1 and two tokens the two largest of all stay, both in the first row here."""
    pre = torch.tensor([[3.0, 2.0], [1.0, 0.5]])

    assert batch_topk(pre, 1).tolist() == [[3.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_batch_topk_equals_a_full_sort(share):
    """On a large batch the bound guessed from a sample changes nothing, dense or sparse, and gradients pass through."""
    rng = torch.Generator().manual_seed(3)
    pre = torch.randn(200, 300, generator=rng) * (torch.rand(200, 300, generator=rng) < share)
    pre.requires_grad_(True)
    flat = pre.detach().relu().flatten()
    order = flat.argsort(descending=True)[: 200 * 4]
    wanted = torch.zeros_like(flat)
    wanted[order] = flat[order]

    found = batch_topk(pre, 4)
    found.sum().backward()

    assert torch.equal(found.detach(), wanted.view(200, 300))
    assert torch.equal(pre.grad, (wanted > 0).float().view(200, 300))


def test_jumprelu_code_does_not_depend_on_the_batch():
    """A token's stored-form code is the same alone and among others (invariant 2)."""
    sae = small()
    sae.threshold.fill_(0.3)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # in steps of 1/256 sums are exact in every order; MKL adds up one row otherwise than sixteen
        for tensor in (sae.W_enc, sae.b_enc, sae.b_dec, x):
            tensor.copy_((tensor * 256).round() / 256)

    assert sae.encode(x)[3].any()
    assert torch.equal(sae.encode(x)[3:4], sae.encode(x[3:4]))


def test_jumprelu_equals_its_formula():
    """Encode is pre · 1[pre > threshold], decode its linear map."""
    sae = small()
    sae.threshold.fill_(0.3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    pre = torch.einsum("td,df->tf", x - sae.b_dec, sae.W_enc) + sae.b_enc
    z = torch.where(pre > 0.3, pre, 0.0)

    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae.decode(z), torch.einsum("tf,fd->td", z, sae.W_dec) + sae.b_dec)


def test_decoder_gradient_is_orthogonal_to_its_rows():
    """After the projection no gradient stretches a decoder row, also where there are more rows than are taken at once."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(4, 2500, k=2)
    sae.initialise(torch.zeros(4), torch.randn(2500, 4))
    sae.W_dec.grad = torch.randn(2500, 4)
    along = (sae.W_dec.grad * sae.W_dec).sum(1)
    across = sae.W_dec.grad - along[:, None] * sae.W_dec.detach()
    sae.project_gradient()

    assert along.abs().min() > 0
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(2500), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.W_dec.grad, across)


def test_fvu_of_the_mean_is_one():
    """Predicting the mean explains nothing; predicting x everything."""
    x = torch.randn(32, 4)

    torch.testing.assert_close(fvu(x, x.mean(0).expand_as(x)), torch.tensor(1.0))
    assert fvu(x, x) == 0


def test_auxk_is_inert_only_without_dead_latents():
    """With nothing dead the loss is zero; with dead latents it has a gradient into their decoder rows alone."""
    sae = small().requires_grad_(True)
    x = torch.randn(8, 4)
    pre = sae.pre_activations(x)
    dead = torch.tensor([True, False, False, False, False, True])

    assert auxk_loss(x, pre[:, :0], sae.W_dec[:0], 4) == 0

    auxk_loss(x, pre[:, dead], sae.W_dec[dead], 4).backward()
    moved = sae.W_dec.grad.abs().sum(1) > 0
    assert moved.tolist() == dead.tolist()


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_sae_round_trip(tmp_path, architecture):
    """What is read encodes as what was written, in SAELens' file names and tensor names."""
    sae = small(architecture)
    if architecture == "jumprelu":
        sae.threshold.fill_(0.2)
    with new_folder(tmp_path / "sae") as folder:
        write_sae(folder, sae, hookpoint="encoder.layers.0", params={"k": 2}, inputs={}, facts={})

    again, _ = read_sae(tmp_path / "sae")

    x = torch.randn(7, 4)
    assert torch.equal(again.encode(x), sae.encode(x))
    assert {p.name for p in (tmp_path / "sae").iterdir()} == {"artifact.json", "cfg.json", "sae_weights.safetensors"}
