import copy
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from components.common.errors import ArtifactError, UserError
from components.common.words import mentions
from components.diffusion.device import accelerator_device
from components.diffusion.encode import content_mask, find_tokens, spelling_patterns, tokenize, tokens_of, word_ends
from components.diffusion.folder import check_folder
from components.diffusion.hooks import read_hookpoint, resolve_hookpoint, rewrite_hookpoint
from components.diffusion.sampling import sample, solver, start_noise
from components.diffusion.text import towers_of
from components.diffusion.trie import ANY, WORD_END, build_trie, find_names
from components.worlds.openmoji.world import WORLD


@pytest.mark.parametrize(("asked", "found"), [("true", "cpu"), ("false", "cuda")])
def test_a_gpu_is_taken_unless_the_cpu_is_asked_for(monkeypatch, asked, found):
    """ACCELERATE_USE_CPU decides where there is a GPU, before any training has asked accelerate for one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    try:
        assert accelerator_device().type == found
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_encode_equals_the_stock_pipeline(tiny_pipe):
    """Hidden states are those of diffusers' own encode_prompt, full length and unmasked."""
    prompts = ["a cat", "a very long prompt about a dog next to a car"]
    wanted, _ = tiny_pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)

    assert torch.equal(towers_of(tiny_pipe).encode(prompts).states, wanted)


def test_sample_equals_the_stock_pipeline(tiny_pipe):
    """Same noise, same solver: the images are those of StableDiffusionPipeline itself, to one grey level."""
    states, empty = (towers_of(tiny_pipe).encode([p]) for p in ("a cat", ""))
    ours = sample(tiny_pipe, states, empty, [7], steps=5, guidance_scale=3.0)
    tiny_pipe.scheduler = solver(tiny_pipe)
    theirs = tiny_pipe(
        "a cat", num_inference_steps=5, guidance_scale=3.0, latents=start_noise(tiny_pipe, [7]), output_type="np"
    ).images

    assert np.abs(ours.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1


def test_sample_does_not_depend_on_the_batch(tiny_pipe):
    """Each image has its own seed: alone or among others it is the same, to one grey level (invariant 8)."""
    prompts = ["a cat", "a dog", "a neon car"]
    states, empty = towers_of(tiny_pipe).encode(prompts), towers_of(tiny_pipe).unconditional()
    whole = sample(tiny_pipe, states, empty, [1, 2, 3], steps=4, guidance_scale=3.0, batch=3)
    single = sample(tiny_pipe, states, empty, [1, 2, 3], steps=4, guidance_scale=3.0, batch=1)

    assert np.abs(whole.astype(int) - single.astype(int)).max() <= 1
    assert not np.array_equal(whole[0], whole[1])


def test_content_mask_by_hand():
    """BOS a b EOS EOS EOS: positions 1 to 3 count, the first EOS among them; so do an EOS that was typed and what follows it."""
    rows = {
        (8, 1, 2, 9, 9, 9): [0, 1, 1, 1, 0, 0],
        (8, 9, 9, 9, 9, 9): [0, 1, 0, 0, 0, 0],
        (8, 9, 1, 9, 9, 9): [0, 1, 1, 1, 0, 0],
        (8, 1, 9, 9, 2, 9): [0, 1, 1, 1, 1, 1],
        (8, 1, 9, 0, 0, 0): [0, 1, 1, 0, 0, 0],  # padded with another token
        (8, 1, 2, 1, 2, 1): [0, 1, 1, 1, 1, 1],  # cut
    }

    assert content_mask(torch.tensor(list(rows)), 9).int().tolist() == list(rows.values())


def test_find_tokens_by_hand():
    """The last token of every occurrence of a two-token name, and nothing for one that is absent."""
    ids = torch.tensor([[8, 1, 2, 1, 2, 9], [8, 2, 1, 9, 9, 9]])

    assert find_tokens(ids, [1, 2]).int().tolist() == [[0, 0, 1, 0, 1, 0], [0] * 6]
    assert find_tokens(ids, [2]).int().tolist() == [[0, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]


def test_content_mask_of_a_prompt_that_is_cut(tokenizer):
    """A prompt too long for the encoder still ends in EOS, and every content position counts."""
    encoded = tokenize(tokenizer, ["cat " * 100])

    assert encoded.input_ids.shape[1] == tokenizer.model_max_length
    assert int(encoded.scored.sum()) == tokenizer.model_max_length - 1


def test_tokens_see_what_the_tokenizer_learned(tokenizer):
    """A token that is learned after the first reading is one token from then on."""
    tokenizer = copy.deepcopy(tokenizer)
    before = tokenize(tokenizer, ["a <snoopy>"]).input_ids
    tokenizer.add_tokens("<snoopy>")

    ids = tokenize(tokenizer, ["a <snoopy>"]).input_ids
    assert ids[0].tolist().count(tokenizer.convert_tokens_to_ids("<snoopy>")) == 1
    assert not torch.equal(ids, before)


def test_another_thread_cannot_change_the_tokens(tokenizer):
    """Whatever padding and truncation a second thread sets on the same tokenizer, these tokens stay."""
    stop, texts = threading.Event(), ["a cat", "dog " * 200]
    wanted, spans = tokenize(tokenizer, texts).input_ids, tokens_of(tokenizer, texts)[1].spans

    def call():
        while not stop.is_set():
            tokenizer(texts, padding="longest")
            tokenizer(texts, truncation=True, max_length=5)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(call)
        try:
            for _ in range(300):
                assert torch.equal(tokenize(tokenizer, texts).input_ids, wanted)
                assert tokens_of(tokenizer, texts)[1].spans == spans
        finally:
            stop.set()
        other.result()


def test_hookpoint_of_both_module_trees(tiny_encoder):
    """The same name finds the layer with and without transformers 4's `text_model` level."""

    class Old(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.text_model = inner

    assert resolve_hookpoint(tiny_encoder, "encoder.layers.1") is tiny_encoder.encoder.layers[1]
    assert resolve_hookpoint(Old(tiny_encoder), "encoder.layers.1") is tiny_encoder.encoder.layers[1]


def test_hookpoint_unknown_is_one_sentence(tiny_encoder):
    """An unknown hookpoint names those that exist."""
    with pytest.raises(
        UserError, match=r"hookpoint 'encoder.layers.9' is not a module .* use one of: encoder.layers.0"
    ):
        resolve_hookpoint(tiny_encoder, "encoder.layers.9")


@pytest.fixture
def folder(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_check_folder_accepts_a_pipeline(folder):
    """A folder that save_pretrained wrote is fine."""
    check_folder(folder)


def test_check_folder_no_pipeline(tmp_path):
    """A folder without model_index.json is refused."""
    with pytest.raises(UserError, match=r"is no diffusers pipeline .* mend base.path"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("_class_name", "StableDiffusion3Pipeline", "is a StableDiffusion3Pipeline, which is not supported"),
        ("_class_name", "FluxPipeline", "is a FluxPipeline, which is not supported"),
        ("unet", ["diffusers", "SD3Transformer2DModel"], "unet of .* is a SD3Transformer2DModel"),
    ],
)
def test_check_folder_unsupported_architecture(folder, key, value, said):
    """Another architecture is refused before a weight is read."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(UserError, match=said):
        check_folder(folder)


def test_check_folder_missing_weights(folder):
    """A component without weights is refused by name."""
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()

    with pytest.raises(ArtifactError, match="unet holds no safetensors file; restore its weights"):
        check_folder(folder)


def test_check_folder_altered_weights(folder):
    """Where a sidecar names digests, other bytes are refused."""
    (folder / "artifact.json").write_text(json.dumps({"files": {"model_index.json": "0" * 64}}))

    with pytest.raises(ArtifactError, match="was altered or cut short; restore it"):
        check_folder(folder)


def test_read_hookpoint_is_the_stream_of_a_whole_pass(tiny_encoder, tokenizer):
    """Leaving the encoder at the hookpoint gives the stream that a whole pass shows there, and leaves nothing behind."""
    ids = tokenize(tokenizer, ["a cat in neon style", ""]).input_ids
    seen = []
    with torch.no_grad(), rewrite_hookpoint(tiny_encoder, "encoder.layers.0", seen.append):
        whole = tiny_encoder(ids)[0]

    assert torch.equal(read_hookpoint(tiny_encoder, "encoder.layers.0", ids), seen[0])
    assert torch.equal(tiny_encoder(ids)[0], whole)
    assert not any(module._forward_hooks for module in tiny_encoder.modules())


def find(ids, patterns, ends):
    """The tokens of one request's patterns, (B, L)."""
    return find_names(ids, build_trie([patterns], ends))[..., 0]


def test_names_are_found_where_a_search_for_words_finds_them(tokenizer):
    """On 2,000 phrases and every alias of the world: tokens hold a name in just those in which a search for words finds one."""
    names = ["cat", "big cat", "neon sign", "key", "book", "rose", "bow"]
    patterns, ends = spelling_patterns(tokenizer, names), word_ends(tokenizer)
    texts = [*WORLD.benign(1950, split="evaluate", seed=3), *[n for c in WORLD.concepts.values() for n in c.aliases]]
    ids = tokenize(tokenizer, texts).input_ids
    found = find(ids, patterns, ends).any(1).tolist()
    short = [bool((row == tokenizer.eos_token_id).any()) for row in ids]

    assert [f for f, s in zip(found, short, strict=True) if s] == [
        mentions(t, tuple(names)) for t, s in zip(texts, short, strict=True) if s
    ]
    assert any(found)
    assert not all(found)


def test_find_names_marks_every_token(tokenizer):
    """A name of several tokens is marked from its first to its last; without names nothing is."""
    ids, ends = tokenize(tokenizer, ["a big cat here"]).input_ids, word_ends(tokenizer)
    end = find_tokens(ids, tokenizer("big cat", add_special_tokens=False).input_ids)
    end |= end.roll(-1, 1)

    assert torch.equal(find(ids, spelling_patterns(tokenizer, ["big cat"]), ends), end)
    assert not find(ids, spelling_patterns(tokenizer, ["dog"]), ends).any()
    assert torch.equal(find(ids, spelling_patterns(tokenizer, [], ["big cat"]), ends), end)
    assert not find(ids, spelling_patterns(tokenizer, []), ends).any()


def test_find_names_equals_comparing_every_pattern_everywhere():
    """Three requests of random patterns over five tokens, so that they overlap, share tails and contain each other."""
    rng = torch.Generator().manual_seed(0)
    ids, ends = torch.randint(5, (200, 9), generator=rng), torch.tensor([True, True, False, False, True])
    patterns = [torch.randint(5, (count, 6), generator=rng) for count in (30, 3, 0)]
    for rows in patterns:  # anything, then the end of a word, then one to five tokens
        for row in rows:
            before = int(torch.randint(5, (), generator=rng))
            row[:before], row[before] = ANY, WORD_END

    def covers(line, j, row):
        tokens = [t for t in row if t >= 0]
        return any(
            line[first : first + len(tokens)] == tokens and (first == 0 or bool(ends[line[first - 1]]))
            for first in range(max(0, j - len(tokens) + 1), j + 1)
        )

    wanted = [
        [[any(covers(line, j, row) for row in rows.tolist()) for rows in patterns] for j in range(9)]
        for line in ids.tolist()
    ]
    found = find_names(ids, build_trie(patterns, ends))

    assert found.tolist() == wanted
    assert found.any((0, 1)).tolist() == [True, True, False]
