"""Towers on the stand-ins: states, pooled output and decisions are the stock pipeline's, whatever the configuration says."""

import copy
import itertools

import pytest
import torch
from diffusers import StableDiffusionPipeline

from components.common.errors import UserError
from components.diffusion.encode import spelling_patterns, tokenize, tokens_of, word_ends
from components.diffusion.load import load_pipeline
from components.diffusion.text import load_towers, towers_of
from components.filter.artifact import RequestFilter
from components.filter.encoder import FilteredTextEncoder
from components.filter.explain import explain_prompt
from tests.standins import KINDS

HOOKPOINTS = {
    "sd15": ["encoder.layers.1"],
    "sd21": ["encoder.layers.1"],
    "sdxl": ["encoder.layers.1", "encoder.layers.2"],
}
PROMPTS = ["a cat", "#! a cat", "cats!! and ?!?! dogs", "a dog", "dog <|endoftext|> cat", "!!!", "", "a house " * 60]
NAMED = [True, True, True, False, True, False, False, False]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(kind, standin):
    return load_pipeline(standin(kind))


@pytest.fixture(scope="module")
def towers(kind, pipe):
    return towers_of(pipe, HOOKPOINTS[kind])


@pytest.fixture(scope="module")
def filtered(towers):
    """The name "cat" flags a prompt, and the edit moves every position from there on."""
    width, tokenizer = towers.stream(towers.tokenize([""])).shape[-1], towers.first.tokenizer
    rng = torch.Generator().manual_seed(0)
    item = RequestFilter(
        features=torch.tensor([0]), own=torch.ones(1), w_enc=torch.zeros(width, 1), b_enc=torch.zeros(1),
        latent_threshold=torch.ones(1), w_dec=torch.zeros(1, width), b_dec=torch.zeros(width),
        weights=torch.zeros(1, 1), bias=torch.zeros(1), decision_threshold=torch.tensor(1.0),
        directions=torch.randn(4, width, generator=rng), word_ends=word_ends(tokenizer),
        spellings=spelling_patterns(tokenizer, ["cat"]),
    )  # fmt: skip
    return FilteredTextEncoder(towers, {"r": item}), item


def stock(pipe, prompt, **how):
    """(states, uncond, pooled, pooled uncond) as diffusers has them."""
    found = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **how)
    return found if len(found) == 4 else (*found, None, None)


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_are_those_of_the_tokenizer_itself(towers, side):
    """Tokens, where they are cut and what pads them are those of a call of the tokenizer, for every tower and cut on either side."""
    for tower in towers.all:
        tokenizer = copy.deepcopy(tower.tokenizer)
        tokenizer.truncation_side = side
        wanted = tokenizer(
            PROMPTS,
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_offsets_mapping=True,
        )

        assert tokenize(tokenizer, PROMPTS).input_ids.tolist() == wanted.input_ids
        for tokens, spans in zip(tokens_of(tokenizer, PROMPTS), wanted.offset_mapping, strict=True):
            assert tokens.spans == [tuple(span) for span in spans[: len(tokens.spans)]]


def test_conditioning_is_the_stock_pipelines(pipe, towers):
    """States, pooled output and the unconditional branch equal those of encode_prompt to the bit; zeros where SDXL has zeros."""
    for prompt in PROMPTS:
        states, uncond, pooled, pooled_uncond = stock(pipe, prompt)
        mine, empty = towers.encode([prompt]), towers.unconditional()
        assert torch.equal(mine.states, states)
        assert torch.equal(empty.states, uncond)
        if pooled is not None:
            assert torch.equal(mine.pooled, pooled)
            assert torch.equal(empty.pooled, pooled_uncond)
            assert not empty.states.any()
            assert mine.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]]
        blank = towers.unconditional("")
        assert torch.equal(blank.states, stock(pipe, "a", negative_prompt="")[1])
        assert blank.states.any()


def test_the_configurations_eos_is_never_asked(towers, filtered):
    """With `#` and `!` in front, the content is scored to the tokenizer's EOS and the name is still found."""
    encoded = towers.tokenize(PROMPTS)
    _, decision = filtered[0].encode(encoded)

    assert encoded.scored.sum(1).tolist()[:2] == [3, 5]  # without BOS: a cat EOS, # ! a cat EOS
    assert decision.flagged[:, 0].tolist() == NAMED


def test_an_edit_leaks_nowhere(towers, filtered):
    """Flagged prompts change in states and pooled output; all others keep every bit of both (invariant 1)."""
    encoded = towers.tokenize(PROMPTS)
    before, (after, decision) = towers.run(encoded), filtered[0].encode(encoded)
    quiet = (~decision.flagged[:, 0]).tolist()
    assert (before.states == after.states).flatten(1).all(1).tolist() == quiet
    if before.pooled is not None and after.pooled is not None:
        quiet[PROMPTS.index("dog <|endoftext|> cat")] = True  # it is read at the first EOS, which has not seen the name
        assert (before.pooled == after.pooled).all(1).tolist() == quiet
    parts = (after.states - before.states)[0].abs().amax(0).split([t.encoder.config.hidden_size for t in towers.all])
    assert all(bool((part > 0).all()) for part in parts)  # both encoders' states


def test_explain_and_encoder_decide_alike(towers, filtered):
    """On every run of up to three symbols around a name and without it."""
    runs = ["".join(signs) for n in (1, 2) for signs in itertools.product("!#?.,'-", repeat=n)]
    prompts = [f"{a}{word}{b}" for word in (" cat ", " dog ") for a in runs for b in ("", "!")]
    decision = filtered[0].encode(towers.tokenize(prompts))[1].flagged[:, 0].tolist()
    explained = [explain_prompt(p, towers, {"r": filtered[1]}, {})["r"].flagged for p in prompts]

    assert decision == explained
    assert decision == [" cat " in p for p in prompts]


def test_positions_of_two_tokenizers_correspond(standin):
    """Where the second tokenizer splits `!`, each token maps to the one that ends at the same character, and EOS to EOS."""
    towers = load_towers(standin("sdxl"), HOOKPOINTS["sdxl"])
    first, second = (tower.tokenizer for tower in towers.all)
    texts = ["wow!!! a cat", "a cat", "!?! cat!", "cat ?!?!"]
    encoded = towers.tokenize(texts)
    (other,) = encoded.others
    assert (
        first.convert_ids_to_tokens(encoded.input_ids[0].tolist())[:3]
        != second.convert_ids_to_tokens(other.input_ids[0].tolist())[:3]
    )
    for row, text in enumerate(texts):
        there = second.convert_ids_to_tokens(other.input_ids[row].tolist())
        here = first.convert_ids_to_tokens(encoded.input_ids[row].tolist())
        name, end = here.index("cat</w>"), here.index("<|endoftext|>")
        assert there[other.forth[row, name]] == "cat</w>", text
        assert there[other.forth[row, end]] == "<|endoftext|>", text
        assert other.back[row, other.forth[row, name]] == name
        assert other.forth[row, 0] == other.back[row, 0] == 0


@pytest.mark.parametrize(
    ("kind", "hookpoints", "said"),
    [
        (
            "sdxl",
            ["encoder.layers.1"],
            r"names 1 module\(s\), and the model has 2 text encoder\(s\); name one for each",
        ),
        (
            "sdxl",
            ["encoder.layers.1", "encoder.layers.4"],
            "lies above layer 3, after which this model reads its prompts",
        ),
        ("sd15", ["encoder.layers.1"] * 2, r"names 2 module\(s\), and the model has 1 text encoder"),
        ("sd15", ["encoder.layers.9"], "is not a module of CLIPTextModel; use one of: encoder.layers.0"),
    ],
)
def test_hookpoints_that_cannot_be(standin, kind, hookpoints, said):
    """Too few, too many, unknown, or above what the U-Net reads."""
    with pytest.raises(UserError, match=said):
        load_towers(standin(kind), hookpoints)


def test_a_tower_that_was_changed_is_refused(standin):
    """A learned token or a LoRA of the text encoder: no filter has seen them."""
    from peft import LoraConfig

    pipe: StableDiffusionPipeline = load_pipeline(standin("sd15"))
    towers = towers_of(pipe, HOOKPOINTS["sd15"])
    towers.check_unchanged()
    pipe.load_textual_inversion(torch.randn(2, 32), "<my-cat>")
    with pytest.raises(UserError, match=r"the tokenizer has learned the token '<my-cat>.*unload_textual_inversion"):
        towers.check_unchanged()
    pipe = load_pipeline(standin("sd15"))
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="a text encoder carries a LoRA"):
        towers_of(pipe, HOOKPOINTS["sd15"]).check_unchanged()
