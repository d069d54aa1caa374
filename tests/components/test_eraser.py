import threading

import numpy as np
import pytest
import torch

from components.common.errors import ArtifactError, UserError
from components.common.variants import VARIANTS
from components.diffusion.encode import tokenize
from components.eraser import Eraser, check_filters
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.filter.targets import TargetNames
from components.guidance.adapters import attach, write_adapter
from components.requests.requests import Request
from tests.states import encode

HOOKPOINT = "encoder.layers.0"
WIDTH = 32
PROMPTS = ["a cat", "a dog", "a castle", "a cat and a dog"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, make_tiny_unet):
    """Folders of two adapters that change something, for requests `r` and `s`."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("rs"):
        unet = make_tiny_unet()
        for parameter in attach(unet, name, rank=2, seed=seed):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        write_adapter(folder / name, unet, name, params={}, inputs={}, facts={})
    return {name: folder / name for name in "rs"}


@pytest.fixture
def eraser(tiny_pipe, spelt_filter, adapters):
    """Request `r` erases the cat, `s` the dog; each has a filter that edits and an adapter."""
    filters = {
        name: spelt_filter(word, WIDTH)._replace(directions=torch.full((4, WIDTH), 0.5))
        for name, word in (("r", "cat"), ("s", "dog"))
    }
    return Eraser(tiny_pipe, filters, HOOKPOINT, adapters, guidance_scale=2.0, solver_steps=2)


def test_each_variant_says_what_acts(eraser):
    """Which filters flag and which adapters act on which prompt, for every variant; only gated spares the empty prompt."""
    flags = [("r",), ("s",), (), ("r", "s")]
    found = {variant: eraser.read(PROMPTS, variant=variant) for variant in VARIANTS}

    assert {v: e.flagged() for v, e in found.items()} == {
        "base": [()] * 4, "filter": flags, "guidance": [()] * 4, "summed": flags, "gated": flags,
    }  # fmt: skip
    assert {v: e.adapters() for v, e in found.items()} == {
        "base": [()] * 4, "filter": [()] * 4, "guidance": [("r", "s")] * 4, "summed": [("r", "s")] * 4, "gated": flags,
    }  # fmt: skip
    assert {v for v, e in found.items() if not e.everywhere} == {"gated"}


def test_unflagged_prompts_are_the_stock_encoders_to_the_bit(eraser):
    """States of prompts that nobody flags equal the stock encoder's, those of flagged ones do not; the negative prompt is never edited."""
    stock = encode(eraser.pipe.text_encoder, eraser.pipe.tokenizer, PROMPTS)
    found = eraser.read(PROMPTS, negative="a cat")

    assert (found.cond.states == stock).flatten(1).all(1).tolist() == [False, False, True, False]
    assert torch.equal(found.uncond.states, encode(eraser.pipe.text_encoder, eraser.pipe.tokenizer, ["a cat"]))


def test_only_the_named_requests_act(eraser):
    """With one of two requests the other's target passes untouched."""
    found = eraser.read(PROMPTS, requests=["s"])

    assert found.flagged() == [(), ("s",), (), ("s",)]
    assert found.adapters() == [(), ("s",), (), ("s",)]


def test_an_adapter_without_a_filter_acts_on_every_prompt(tiny_pipe, adapters):
    """Gated by detection, a request of the guidance channel alone has nothing to gate by."""
    eraser = Eraser(tiny_pipe, {}, HOOKPOINT, {"r": adapters["r"]})

    assert eraser.read(["a cat", "a castle"]).adapters() == [("r",), ("r",)]


def test_a_gated_adapter_acts_from_its_own_threshold_on(tiny_pipe, spelt_filter, adapters):
    """With a gate of -inf it acts on every prompt, with one of inf where the filter flags; what is encoded stays the same."""
    item = spelt_filter("cat", WIDTH)
    eraser = Eraser(tiny_pipe, {"r": item}, HOOKPOINT, {"r": adapters["r"]})

    def acting(gate):
        eraser.filters["r"] = item._replace(gate_threshold=torch.tensor(gate))
        return eraser.read(PROMPTS)

    always, flagged = acting(float("-inf")), acting(float("inf"))
    assert always.adapters() == [("r",)] * 4
    assert flagged.adapters() == [("r",), (), (), ("r",)]
    assert always.flagged() == flagged.flagged()
    assert torch.equal(always.cond.states, flagged.cond.states)


def test_names_hidden_in_text_are_flagged_and_edited(tiny_pipe, spelt_filter, adapters):
    """A name that no token spells flags its request, edits the states at its tokens and lets the adapter act; others keep their bits."""
    item = spelt_filter("kitten", WIDTH)._replace(directions=torch.full((4, WIDTH), 0.5))
    targets = {"r": TargetNames(("kitten", "kittens"), ("kitten heels",))}
    prompts = [
        "a kitt\u0435n",
        "a k-i-t-t-e-n",
        "a kitteg",
        "a mitten",
        "kitten heels",
        "<|endoftext|> kitten",
        "a kitten",
    ]
    eraser = Eraser(tiny_pipe, {"r": item}, HOOKPOINT, {"r": adapters["r"]}, targets=targets)
    found, stock = eraser.read(prompts), encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)
    named = [True, True, True, False, False, True, True]

    assert [bool(f) for f in found.flagged()] == named
    assert [bool(a) for a in found.adapters()] == named
    assert (found.cond.states != stock).flatten(1).any(1).tolist() == named


@pytest.mark.parametrize(
    "before", ["<|endoftext|>", "<|startoftext|>", "<|endoftext|>" * 3, "#! ", "!!! ", "x" * 9 + " "]
)
def test_nothing_before_a_name_unflags_it(tiny_pipe, spelt_filter, before):
    """Whatever stands in front of a name, it is found in tokens, in text, and its position is scored."""
    item = spelt_filter("cat", WIDTH)
    texts = {"r": TargetNames(("cat",))}
    scored = tokenize(tiny_pipe.tokenizer, [before + "a cat"])
    last = scored.input_ids[0].tolist().index(tiny_pipe.tokenizer.convert_tokens_to_ids("cat</w>"))

    assert bool(scored.scored[0, last])
    for targets in (None, texts):
        eraser = Eraser(tiny_pipe, {"r": item}, HOOKPOINT, {}, targets=targets)
        assert eraser.read([before + "a cat"]).flagged() == [("r",)]


def test_each_prompt_is_encoded_once(eraser):
    """Reading prompts for one variant asks the encoder once for each distinct prompt, and once for the empty one."""
    rows = []
    handle = eraser.pipe.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    eraser.read(["a cat", "a castle", "a cat"])
    handle.remove()

    assert sum(rows) == 3


def paint(eraser, variant, prompts=PROMPTS):
    erased = eraser.read(prompts, variant=variant)
    return np.concatenate([images for _, images in eraser.paint(erased, range(len(prompts)), batch=3)])


def test_gated_images_are_the_bases_unless_flagged(eraser):
    """Gated, the prompt that no request flags draws the base's image to the bit; summed it does not. Afterwards the base is as it was."""
    base = paint(eraser, "base")
    gated, summed = paint(eraser, "gated"), paint(eraser, "summed")
    same = lambda a: [bool((x == y).all()) for x, y in zip(a, base, strict=True)]  # noqa: E731

    assert same(gated) == [False, False, True, False]
    assert not any(same(summed))
    assert all(same(paint(eraser, "base")))


def test_gated_is_filter_and_adapter_of_the_flagged_request(eraser):
    """The gated image of a cat is that of its own filter and adapter with no other request about."""
    one = eraser.read(["a cat"], requests=["r"])
    ((_, alone),) = eraser.paint(one, [0])

    np.testing.assert_array_equal(paint(eraser, "gated", ["a cat"]), alone)


def test_a_stock_pipeline_call_draws_what_paint_draws(eraser):
    """Inside `acting`, `pipe(**erased.for_pipeline())` is gated too, with several images a prompt; a call of other prompts is refused."""
    erased = eraser.read(["a cat", "a castle"])
    rng = lambda: [torch.Generator().manual_seed(i) for i in range(4)]  # noqa: E731
    how = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "np"}
    with eraser.unguarded():
        stock = eraser.pipe(["a cat", "a castle"], generator=rng(), **how).images
    with eraser.acting(erased, images_per_prompt=2):
        images = eraser.pipe(**erased.for_pipeline(), generator=rng(), **how).images
        with pytest.raises(UserError, match="the U-Net is given a prompt that this eraser did not read; pass"):
            eraser.pipe("a cat", num_inference_steps=1)

    assert not (images[:2] == stock[:2]).all()
    np.testing.assert_array_equal(images[2:], stock[2:])
    with eraser.unguarded():
        np.testing.assert_array_equal(eraser.pipe(["a cat", "a castle"], generator=rng(), **how).images, stock)


def test_two_threads_get_what_one_gets(eraser):
    """Forty drawings in four threads, flagged and not, are those of a single thread: no decision or adapter leaks from one to another."""
    wanted = {prompt: np.asarray(eraser.draw(prompt, seed=1, steps=1).image) for prompt in PROMPTS}
    wrong = []

    def work(offset):
        for i in range(10):
            prompt = PROMPTS[(i + offset) % len(PROMPTS)]
            drawing = eraser.draw(prompt, seed=1, steps=1)
            if not (np.asarray(drawing.image) == wanted[prompt]).all() or ("r" in drawing.flagged) != ("cat" in prompt):
                wrong.append(prompt)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"variant": "both"}, "variant 'both' is unknown; use one of: base, filter"),
        ({"requests": ["r", "q"]}, "request 'q' is unknown; use some of: r, s"),
    ],
)
def test_bad_input_is_one_sentence(eraser, how, said):
    """An unknown variant or request is refused before anything is drawn."""
    with pytest.raises(UserError, match=said):
        eraser.read(["a cat"], **how)


def test_drawing_inside_a_block_is_refused(eraser):
    """A drawing inside `acting` would leave the block without its adapters: it is refused, and afterwards drawing goes on."""
    erased = eraser.read(["a cat"])
    with eraser.acting(erased), pytest.raises(UserError, match="this eraser is drawing already; leave the block"):
        eraser.draw("a dog")

    assert eraser.draw("a dog").flagged == ("s",)


def test_a_request_without_its_filter_is_refused(spelt_filter):
    """A request of the channel filter that the artifact lacks would pass unfiltered: it is refused by name; one of guidance alone is not."""
    cat = Request(target="cat", kind="object")
    owl = Request(target="owl", kind="object", channels=("guidance",))
    check_filters({"r": spelt_filter("cat", WIDTH)}, {"r": cat, "s": owl})

    with pytest.raises(ArtifactError, match="there is no filter of request t; fit it: expunge run features"):
        check_filters(
            {"r": spelt_filter("cat", WIDTH)}, {"r": cat, "t": owl.model_copy(update={"channels": ("filter",)})}
        )


def test_painter_draws_no_image_twice(eraser, monkeypatch):
    """What two variants or requests share is drawn once: unflagged prompts are the base's, and a joint scope repeats single ones."""
    painter, seeds = Painter(eraser, batch=3), []
    whole = Eraser.paint
    monkeypatch.setattr(
        Eraser, "paint", lambda self, erased, listed, **k: seeds.extend(listed) or whole(self, erased, listed, **k)
    )
    cat, castle = ImageSpec("a cat", 1), ImageSpec("a castle", 2)
    base, gated, joint = (
        painter.images(Wanted((cat, castle, cat), variant, requests))
        for variant, requests in (("base", ("r",)), ("gated", ("r",)), ("gated", ("r", "s")))
    )

    assert sorted(seeds) == [1, 1, 2]
    assert (painter.drawn, painter.asked) == (3, 9)
    np.testing.assert_array_equal(gated, joint)
    np.testing.assert_array_equal(gated[1], base[1])
    np.testing.assert_array_equal(gated[0], gated[2])


def test_painter_draws_what_the_eraser_draws(eraser):
    """An image of the painter is the one that the eraser paints for the same prompt, seed and variant, alone."""
    painter = Painter(eraser, batch=4)
    specs = tuple(ImageSpec(prompt, seed) for seed, prompt in enumerate(PROMPTS))
    for variant in VARIANTS:
        found = painter.images(Wanted(specs, variant, ("r", "s")))
        np.testing.assert_allclose(found.astype(int), paint(eraser, variant).astype(int), atol=1)
