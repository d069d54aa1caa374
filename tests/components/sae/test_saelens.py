import pytest
import torch

from components.common.files import new_folder
from components.sae.model import SparseAutoencoder, write_sae

sae_lens = pytest.importorskip(
    "sae_lens", reason="the optional extra of this test is not installed: pip install sae-lens"
)


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_saelens_reads_what_we_write(tmp_path, architecture):
    """SAELens opens the folder, and its codes and reconstructions are ours, for both architectures."""
    rng = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(24, 96, k=6, architecture=architecture).requires_grad_(False)
    sae.initialise(torch.randn(24, generator=rng), torch.randn(96, 24, generator=rng))
    sae.b_enc.copy_(0.1 * torch.randn(96, generator=rng))
    if architecture == "jumprelu":
        sae.threshold.fill_(0.3)
    with new_folder(tmp_path / "sae") as partial:
        write_sae(partial, sae, hookpoint="encoder.layers.0", params={"k": 6}, inputs={}, facts={})
    x = torch.randn(50, 24, generator=rng)

    other = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))

    torch.testing.assert_close(other.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.decode(other.encode(x)), sae.decode(sae.encode(x)), rtol=1e-5, atol=1e-5)
