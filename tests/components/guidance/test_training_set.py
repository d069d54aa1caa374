from collections import Counter

import pandas as pd
import pytest
import torch

from components.diffusion.conditioning import Conditioning
from components.guidance.training_set import pick_prompts, prepare
from components.guidance.trajectories import cache_trajectories, in_training_form, precision_of
from tests.states import encode

IN_ENGLISH = ("my cat will jump", "my dog will jump", "context", "calibrate", True, ("cat",))


def states(pipe, *prompts):
    return encode(pipe.text_encoder, pipe.tokenizer, prompts)


def prompts_of(roles):
    """A table of prompts of one request: (role, labels of what is shown, name of the target, style, how many)."""
    listed = [(role, shown, name, style) for role, shown, name, style, count in roles for _ in range(count)]
    rows = pd.DataFrame(listed, columns=["role", "concepts", "name_used", "style"])
    rows["pair"] = rows["concepts"].map(len) > 1
    rows["prompt"] = [f"{row.role} {row.pair} {row.Index}" for row in rows.itertuples()]
    return rows.assign(split="select", names_target=rows["role"].isin(["target", "alias", "context", "mixed"]))


def test_retained_prompts_show_two_concepts_in_five_of_eight():
    """One in eight is about neighbours, five show two concepts, and among those that show one all do before any does again."""
    concepts = [("retain", (name,), "", "", count) for name, count in (("sun", 90), ("moon", 2), ("star", 3))]
    rows = prompts_of([("neighbour", ("fox",), "", "", 30), ("retain", ("sun", "moon"), "", "", 60), *concepts,
                       ("target", ("cat",), "cat", "", 9)])  # fmt: skip
    about, retained = pick_prompts(rows, "r", seed=0, count=4, retain_count=32)
    late, _ = pick_prompts(rows.assign(split="evaluate"), "r", seed=0, count=4, retain_count=32)
    one = rows[rows["prompt"].isin(retained) & (rows["role"] == "retain") & ~rows["pair"]]

    assert (len(about), len(late)) == (4, 0)
    assert Counter(text.rsplit(" ", 1)[0] for text in retained) == {
        "neighbour False": 4, "retain True": 20, "retain False": 8,
    }  # fmt: skip
    assert one["concepts"].value_counts().to_dict() == {("sun",): 3, ("moon",): 2, ("star",): 3}


def test_every_name_in_every_style_is_trained_on_as_often():
    """Seven in ten show the target alone, its rare names as often as its common ones, in random order."""
    alone = [
        ("alias", ("gun",), name, style, count)
        for name, count in (("gun", 90), ("bow", 3))
        for style in ("neon", "ink")
    ]
    rows = prompts_of([*alone, ("context", ("gun",), "gun", "", 90), ("mixed", ("gun", "car"), "gun", "neon", 50)])
    about, _ = pick_prompts(rows, "r", seed=0, count=20, retain_count=0)
    found = about[about["role"] == "alias"]

    assert about["role"].value_counts().to_dict() == {"alias": 14, "context": 3, "mixed": 3}
    assert found.groupby(["name_used", "style"]).size().to_dict() == {
        ("bow", "ink"): 3, ("bow", "neon"): 3, ("gun", "ink"): 4, ("gun", "neon"): 4,
    }  # fmt: skip
    assert not about["role"].is_monotonic_increasing


def test_training_set_has_every_prompt_that_names_the_target(tiny_pipe, record, table, params):
    """Everyday English is among them, the evaluation's never; what is retained does not name it."""
    data = prepare(tiny_pipe, record, table(IN_ENGLISH), params, guidance_scale=3.0)

    def as_sets(each):
        return {row.numpy().tobytes() for row in each}

    assert len(data.target.states) == 3
    assert as_sets(data.target.states) == as_sets(states(tiny_pipe, "a cat", "neon cat on a car", IN_ENGLISH[0]))
    assert as_sets(data.retained.states) == as_sets(states(tiny_pipe, "a car", "an owl"))
    assert torch.equal(data.uncond.states, states(tiny_pipe, ""))


def test_training_set_without_an_anchor_aims_at_the_empty_prompt(tiny_pipe, record, table, params):
    """The target's guidance is trained to nothing."""
    free = record.model_copy(update={"request": record.request.model_copy(update={"anchor": ""})})
    data = prepare(tiny_pipe, free, table(anchor=False), params, guidance_scale=3.0)

    assert torch.equal(data.erase.cond, data.erase.uncond)
    assert not torch.equal(data.retain.cond, data.retain.uncond)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("anchored", [True, False])
def test_cache_has_what_the_frozen_model_says(tiny_pipe, params, anchored, precision):
    """Outputs taken from sampling equal a pass of their own at each state, whether the anchor is drawn, only aimed at, or absent."""
    target, anchor = states(tiny_pipe, "a cat", "neon cat"), states(tiny_pipe, "a dog", "neon dog")
    empty = states(tiny_pipe, "")
    params = params.model_copy(update={"precision": precision})
    drawn = torch.cat([target[:1], anchor[1:]]) if anchored else target
    cache = cache_trajectories(
        tiny_pipe, Conditioning(drawn), Conditioning(anchor) if anchored else None, Conditioning(empty), params,
        scope="erase", solver_steps=3, guidance_scale=3.0,
    )  # fmt: skip
    with torch.no_grad(), in_training_form(tiny_pipe.unet, params), precision_of(params, torch.device("cpu")):
        free = tiny_pipe.unet(cache.latents, cache.timesteps, empty.expand(len(cache.latents), -1, -1)).sample
        aimed = tiny_pipe.unet(cache.latents, cache.timesteps, anchor[cache.prompt]).sample if anchored else free

    assert len(cache.latents) == 2 * 3
    within = {"no": 1e-5, "bf16": 1e-2}[precision]
    torch.testing.assert_close(cache.uncond, free.float(), atol=within, rtol=within)
    torch.testing.assert_close(cache.cond, aimed.float(), atol=within, rtol=within)
    assert cache.uncond.dtype == cache.cond.dtype == torch.float32
