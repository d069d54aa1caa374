import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.diffusion.encode import encode
from components.export.merged import check_target
from components.guidance.adapters import attach, empty_directions, write_adapter
from components.guidance.fuse import (
    Scatter,
    check_fusible,
    choose_prompts,
    confine,
    fuse,
    fused_files,
    scatter_of,
    write_fused,
)
from components.requests.requests import Request

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
    ("s", "select", "a car and a kitty"),
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
    """Against an optimiser that knows the samples: of all maps blind to V none is nearer to what gated adapters do."""
    first, second, both, keep, empty = (normal(30, 8, seed=i) for i in range(5))
    one, other = normal(3, 8, seed=5), normal(5, 8, seed=6)[:3]
    known = torch.linalg.qr(normal(8, 2, seed=7))[0].T  # (e, D)
    own = torch.stack([first.T @ first + both.T @ both, second.T @ second + both.T @ both])
    carrying = first.T @ first + second.T @ second + both.T @ both
    given = Scatter(own, carrying, keep.T @ keep, empty.T @ empty)
    free = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def fitted():
        return free - (free @ known.T) @ known

    def loss():
        optimizer.zero_grad()
        parts = [(first, one), (second, other), (both, one + other)]
        value = sum((h @ (fitted() - wanted).T).square().sum() for h, wanted in parts)
        value = value + 6.0 * (keep @ fitted().T).square().sum() + (empty @ fitted().T).square().sum()
        value = value + 1e-4 * fitted().square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    left, right = confine(given, known, retain_weight=6.0)

    torch.testing.assert_close(one @ left + other @ right, fitted().detach(), atol=1e-6, rtol=1e-6)


def test_scatter_counts_a_prompt_for_whatever_it_carries(tiny_pipe, table):
    """A prompt counts by the names in it and not by whose it is; with a held-out name, or of the evaluation, it counts nowhere."""
    found = scatter_of(tiny_pipe, choose_prompts(table, REQUESTS))

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


def test_fused_tensors_are_each_adapters_own():
    """One below the other stand the A of adapters, of whatever ranks, each times its own map, and side by side their B as they are.

    What one alone has, keys beside an adapter of values, is that one's, with zeros for the other.
    """
    down, up = "unet.x.attn2.to_v.lora.down.weight", "unet.x.attn2.to_v.lora.up.weight"
    parts = {
        name: {down: normal(rank, 8, seed=rank).float(), up: normal(5, rank, seed=rank).float()}
        for name, rank in (("r", 2), ("s", 3))
    }
    keys = {key.replace("to_v", "to_k"): normal(*tensor.shape, seed=7).float() for key, tensor in parts["s"].items()}
    maps = {"s": normal(8, 8), "r": normal(8, 8, seed=1)}
    fused = fuse({"r": parts["r"], "s": parts["s"] | keys}, maps)

    wanted = sum(t[up].double() @ t[down].double() @ maps[name] for name, t in parts.items())
    torch.testing.assert_close(fused[up] @ fused[down], wanted.float(), atol=1e-4, rtol=1e-4)
    assert torch.equal(fused[up], torch.cat([parts["r"][up], parts["s"][up]], dim=1))
    down, up = (key.replace("to_v", "to_k") for key in (down, up))
    wanted = keys[up].double() @ keys[down].double() @ maps["s"]
    torch.testing.assert_close(fused[up] @ fused[down], wanted.float(), atol=1e-4, rtol=1e-4)
    assert fused[down].shape == (5, 8)  # the ranks' sum, as everywhere: old versions of diffusers know one rank alone


def test_fused_adapter_is_one_that_diffusers_opens(tiny_pipe, table, tmp_path):
    """`load_lora_weights` opens what was written, it acts and is blind to the empty prompt; adapters keep their bytes, and the same inputs give the same."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    folders = {
        name: make(tiny_pipe, tmp_path / name, seed=i, parameters=("xattn-kv", "xattn-v")[i])
        for i, name in enumerate(REQUESTS)
    }
    before = {name: digest(folder) for name, folder in folders.items()}
    written = [tmp_path / "one", tmp_path / "again"]
    for folder in written:
        write_fused(folder, tmp_path / "base", folders, REQUESTS, table)
    tensors = load_file(written[0] / "pytorch_lora_weights.safetensors")
    known = empty_directions(encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, [""]))
    states = encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a cat"])
    x, time = normal(1, 4, 8, 8).float(), torch.tensor([400])
    with torch.no_grad():
        base = tiny_pipe.unet(x, time, states).sample
        tiny_pipe.load_lora_weights(str(tmp_path / "one"))
        acting = tiny_pipe.unet(x, time, states).sample

    assert not torch.allclose(base, acting)
    assert max(float((t @ known.T).norm() / t.norm()) for key, t in tensors.items() if ".down." in key) < 1e-5
    assert {name: digest(folder) for name, folder in folders.items()} == before
    assert digest(written[0]) == digest(written[1])


def test_a_trained_adapter_is_no_export(tiny_pipe, table, tmp_path):
    """A fused adapter may be written over, a trained one may not, though both are adapters."""
    tiny_pipe.save_pretrained(tmp_path / "base")
    folders = {name: make(tiny_pipe, tmp_path / name, seed=i) for i, name in enumerate(REQUESTS)}
    write_fused(tmp_path / "one", tmp_path / "base", folders, REQUESTS, table)

    check_target(tmp_path / "one", tmp_path / "base", fused_files)
    with pytest.raises(UserError, match="is not empty and is no previous export"):
        check_target(folders["r"], tmp_path / "base", fused_files)
    with pytest.raises(ArtifactError, match="holds an adapter that was trained; name another folder"):
        fused_files(folders["r"])


def test_fuse_refuses_what_it_cannot_fuse(tiny_pipe, table, tmp_path):
    """An adapter of queries and outputs, a single one, and a request that no prompt carries are refused in one sentence."""
    wide = make(tiny_pipe, tmp_path / "wide", seed=0, parameters="xattn")
    with pytest.raises(UserError, match="only keys and values of cross-attention can be fused; train it with"):
        check_fusible({"r": wide, "s": wide})
    with pytest.raises(UserError, match=r"r alone is nothing to fuse; load .*wide as it is"):
        check_fusible({"r": wide})
    unknown = {"q": Request(target="ghost", kind="character", anchor="dog")}
    with pytest.raises(UserError, match="no prompt carries the target of q; write them again: dvc repro concepts"):
        choose_prompts(table.assign(request="q"), unknown)
