import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from components.common.artifacts import digest
from components.common.errors import UserError
from components.diffusion import encode
from components.guidance import attach, check_fusible, confine, fuse, write_adapter, write_fused
from components.guidance.adapters import empty_directions
from components.guidance.fuse import Scatter, scatter_of
from components.requests import Request

REQUESTS = {
    "r": Request(target="cat", kind="object", aliases=("kitten", "kitty"), anchor="dog"),
    "s": Request(target="car", kind="object", anchor="bicycle"),
}
ROWS = [
    ("r", "select", "a cat"),
    ("r", "calibrate", "a kitten on a tree"),
    ("r", "select", "a car"),  # to be kept, says r
    ("r", "select", "an owl"),
    ("s", "select", "a car"),
    ("s", "select", "cars and cats"),
    ("s", "select", "a kitty"),  # a name that is kept for the evaluation
    ("s", "evaluate", "a red car"),
    ("t", "select", "a tree"),  # of a request that takes no part
]


@pytest.fixture
def table():
    return pd.DataFrame(ROWS, columns=["request", "split", "prompt"])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(pipe, folder, *, seed, parameters="xattn-kv"):
    """An adapter with random weights, which was trained on the U-Net of `folder`'s parent."""
    for i, parameter in enumerate(attach(pipe.unet, "made", parameters=parameters, rank=4, seed=seed)):
        parameter.data = 0.3 * normal(*parameter.shape, seed=100 * seed + i).float()
    write_adapter(folder, pipe.unet, "made", params={}, inputs={}, facts={})
    pipe.unet.delete_adapters("made")
    return folder


def test_confined_maps_are_the_least_squares_fit_to_gated_ones():
    """Against an optimiser that knows the samples: no map is nearer to each adapter on its own states and to none on the others."""
    first, second, both, keep = (normal(30, 8, seed=i) for i in range(4))
    one, other = normal(3, 8, seed=5), normal(5, 8, seed=6)[:3]
    own = torch.stack([first.T @ first + both.T @ both, second.T @ second + both.T @ both])
    carrying = first.T @ first + second.T @ second + both.T @ both
    given = Scatter(own, carrying, keep.T @ keep, torch.zeros(8, 8).double())
    fitted = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        parts = [(first, one), (second, other), (both, one + other)]
        value = sum((h @ (fitted - wanted).T).square().sum() for h, wanted in parts)
        value = value + 6.0 * (keep @ fitted.T).square().sum() + 1e-4 * fitted.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    left, right = confine(given, retain_weight=6.0)

    torch.testing.assert_close(one @ left + other @ right, fitted.detach(), atol=1e-6, rtol=1e-6)


def test_scatter_counts_a_prompt_for_whatever_it_carries(tiny_pipe, table):
    """A prompt counts by the names in it and not by whose it is; held-out names and the evaluation's prompts count nowhere."""
    found = scatter_of(tiny_pipe, table, REQUESTS, seed=0)

    def mean(*prompts):
        h = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, list(prompts)).double()
        return torch.einsum("pld,ple->de", h, h) / h.shape[1]

    cats, cars = ("a cat", "a kitten on a tree"), ("a car",)
    both = mean("cars and cats") * (1 / 3 + 1 / 2)
    torch.testing.assert_close(found.own[0], mean(*cats) / 3 + both)
    torch.testing.assert_close(found.own[1], mean(*cars) / 2 + both)
    torch.testing.assert_close(found.carrying, mean(*cats) / 3 + mean(*cars) / 2 + both)
    torch.testing.assert_close(found.keep, mean("an owl"))
    torch.testing.assert_close(found.uncond, mean(""))


def test_fused_adapter_is_blind_to_the_empty_prompt_and_keeps_b(tiny_pipe, table, tmp_path):
    """Its B are the adapters' own side by side, and its A read nothing in the directions that carry the empty prompt."""
    folders = {name: make(tiny_pipe, tmp_path / name, seed=i) for i, name in enumerate(REQUESTS)}
    fused = fuse(tiny_pipe, folders, REQUESTS, table)
    parts = [load_file(f / "pytorch_lora_weights.safetensors") for f in folders.values()]
    known = empty_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""]))
    ups = [key for key in fused if ".up." in key]
    downs = [fused[key] for key in fused if ".down." in key]

    assert fused.keys() == parts[0].keys()
    assert [key for key in ups if not torch.equal(fused[key], torch.cat([p[key] for p in parts], dim=1))] == []
    assert {down.shape for down in downs} == {(8, 32)}
    assert max(float((down @ known.T).norm() / down.norm()) for down in downs) < 1e-5


def test_fused_adapter_is_one_that_diffusers_opens(tiny_pipe, table, tmp_path):
    """`load_lora_weights` opens what was written, and it acts; the adapters keep their bytes, and the same inputs give the same bytes."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    folders = {name: make(tiny_pipe, tmp_path / name, seed=i) for i, name in enumerate(REQUESTS)}
    before = {name: digest(folder) for name, folder in folders.items()}
    written = [tmp_path / "one", tmp_path / "again"]
    for folder in written:
        write_fused(folder, tmp_path / "base", folders, REQUESTS, table)
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])
    x, time = normal(1, 4, 8, 8).float(), torch.tensor([400])
    with torch.no_grad():
        base = tiny_pipe.unet(x, time, states).sample
        tiny_pipe.load_lora_weights(str(tmp_path / "one"))
        acting = tiny_pipe.unet(x, time, states).sample

    assert not torch.allclose(base, acting)
    assert {name: digest(folder) for name, folder in folders.items()} == before
    assert digest(written[0]) == digest(written[1])


def test_fuse_refuses_what_is_no_map_of_hidden_states(tiny_pipe, table, tmp_path):
    """An adapter of queries and outputs, and a request that no prompt carries, are refused in one sentence."""
    wide = make(tiny_pipe, tmp_path / "wide", seed=0, parameters="xattn")
    with pytest.raises(UserError, match="only keys and values of cross-attention can be fused; train it with"):
        check_fusible({"r": wide})
    unknown = {"q": Request(target="ghost", kind="character", anchor="dog")}
    with pytest.raises(UserError, match="no prompt carries the target of q; run the stage that writes them"):
        scatter_of(tiny_pipe, table.assign(request="q"), unknown, seed=0)
