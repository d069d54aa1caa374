import json

import numpy as np
import torch

from components.diffusion.encode import Encoded
from components.diffusion.trie import ANY, WORD_END
from components.filter.encoder import FilteredTextEncoder
from research.filter import latency
from research.filter.graphs import SPELLINGS, DenseSae, Shape, build_encoder, build_filters, build_towers, prompts
from research.filter.latency import Contender, run, summarise

TINY = Shape(layers=1, width=16, heads=2, length=77, vocabulary=300)


def test_filters_have_the_shipped_ones_form():
    """Each request has its names' token patterns, and the product's encoder decides about every prompt with all of them."""
    filters = build_filters(TINY.width, TINY.vocabulary, 3)
    item = next(iter(filters.values()))
    encoder = FilteredTextEncoder(build_towers(TINY, build_encoder(TINY)), filters)
    ids = torch.from_numpy(prompts(TINY, 2))
    (hidden, *_), decision = encoder.encode(Encoded(ids, ids > 0))

    assert len(item.spellings) == SPELLINGS
    assert ((item.spellings == WORD_END).sum(1) == 1).all()
    assert ((item.spellings == ANY).sum(1) <= item.spellings.shape[1] - 3).all()
    assert hidden.shape == (2, 77, 16)
    assert decision.flagged.shape == (2, 3)


def test_dense_form_is_topk_reconstruction():
    """Against a loop: the 64 largest pre-activations of each position, cut at zero, times their decoder rows."""
    sae = DenseSae(4, 128)
    x = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    wanted = torch.zeros_like(x)
    for position in range(2):
        for latent in pre[0, position].argsort(descending=True)[:64]:
            wanted[0, position] += pre[0, position, latent].relu() * sae.W_dec[latent]

    torch.testing.assert_close(sae(x), wanted, rtol=1e-4, atol=1e-5)


def test_ratios_are_taken_within_turns():
    """By hand: turns of 1 and 3 seconds, the other contender 2 and 3: ratios 2 and 1, their median 1.5."""
    contenders = [Contender(name, lambda: None, 1.0, 1.0) for name in ("encoder", "filter")]
    found = summarise(contenders, {"encoder": [1.0, 3.0], "filter": [2.0, 3.0]}, 1)

    assert found[1]["ratio_within_turns"]["median"] == 1.5
    assert found[1]["milliseconds"]["median"] == 2500


def test_a_tiny_run_times_all_graphs(tmp_path, monkeypatch):
    """Encoder, filter and dense form each have times at each batch, and the record lists them in that order."""
    monkeypatch.setattr(latency, "resident_alone", latency.resident)  # a process of its own takes seconds
    found = run(TINY, [1], [128], [1, 2], repeats=3, seconds=5, out=tmp_path)
    written = json.loads((tmp_path / "filter_latency.json").read_text())
    names = ["encoder", "encoder, 1 request"]

    assert [r["contender"] for r in found] == [*names, *names, "encoder, dense SAE of 2^7", "encoder, dense SAE of 2^7"]
    assert min(r["milliseconds"]["median"] for r in found) > 0
    assert np.isclose(found[0]["ratio_within_turns"]["median"], 1)
    assert written["results"] == found
