import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from components.collect.concepts import build_prompts, make_record
from components.collect.params import ConceptsParams
from components.diffusion.params import BaseParams
from components.eraser import Eraser
from components.evaluate.images import Painter
from components.evaluate.metrics import proportion
from components.evaluate.select import pick_retain
from components.filter.encoder import FilteredTextEncoder
from components.guidance import recipe
from components.guidance.adapters import attach, write_adapter
from components.guidance.params import GuidanceParams
from components.requests.requests import Request, load_requests
from components.worlds.base import Judgement
from components.worlds.openmoji.world import WORLD
from research.guidance import training
from research.guidance.groups import MORE, Group, groups_of, requests_together
from research.guidance.measure import ORDINARY, Prompts, measure_adapters, ordinary_phrases, pick_neighbours
from research.guidance.report import plot_together
from research.guidance.training import train_one

CAT = Request(target="cat", kind="object", aliases=("kitty",), anchor="dog", neighbours=("dog", "lion"))
NEON = Request(target="neon", kind="style", anchor="line art", neighbours=("blueprint",))
COUNTS = ConceptsParams(per_name=4, retain=24, mixed=4, seed=0)


class Blind:
    """A judge that finds in every image an owl in sepia."""

    digest, concept_names, style_names = "0", ("cat", "dog", "lion", "owl"), ("neon", "line art", "blueprint", "sepia")

    def __call__(self, images):
        """The same answer for each image."""
        n = len(images)
        concepts, styles = (np.tile([0.0, 0.0, 0.0, 1.0], (n, 1)) for _ in range(2))
        return Judgement(concepts, styles, np.zeros(n), self.concept_names, self.style_names)


@pytest.fixture(scope="module")
def asked():
    """(records of a cat and of neon, prompts to measure them on)."""
    requests = {"c": CAT, "n": NEON}
    records = {i: make_record(i, request, WORLD) for i, request in requests.items()}
    table = build_prompts(requests, WORLD, COUNTS).query("split == 'evaluate'")
    retain = pick_retain(table, records, 8, 0)
    return records, Prompts(table, retain, ordinary_phrases(WORLD, records, seed=0)[:4], 2, 2, 0)


@pytest.fixture
def painter(tiny_pipe, spelt_filter, make_tiny_unet, tmp_path):
    """The tiny pipeline with two adapters that change much, and filters that flag and edit nothing."""
    for seed, name in enumerate("cn"):
        unet = make_tiny_unet()
        for parameter in attach(unet, name, rank=2, seed=seed):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        write_adapter(tmp_path / name, unet, name, params={}, inputs={}, facts={})
    filters = {"c": spelt_filter("cat", 32), "n": spelt_filter("neon", 32)}
    folders = {name: tmp_path / name for name in "cn"}
    return Painter(Eraser(tiny_pipe, filters, "encoder.layers.0", folders, solver_steps=2, guard=False), batch=16)


def test_the_same_requests_act_together_as_in_the_results():
    """Twenty requests in the order that the published results have; none draws what another of them erases."""
    first = load_requests() | MORE
    requests = requests_together(20, first, WORLD, seed=0)
    erased = {label for request in requests.values() for label in WORLD.labels(request)}

    assert list(requests)[4:7] == ["w-doughnut", "w-snake", "w-mushroom"]
    assert len(requests) == 20
    assert not erased & {request.anchor for request in requests.values()}
    assert requests_together(2, first, WORLD, seed=0) == load_requests()


def test_groups_are_the_first_requests_in_three_ways():
    """Summed and gated groups are the first adapters, a fused adapter stands for them; one adapter is never fused."""
    assert groups_of(["a", "b", "c"], [2, 1, 2]) == {
        "1 guidance": Group(("a",), ("a",), "guidance"),
        "1 gated": Group(("a",), ("a",), "gated"),
        "2 guidance": Group(("a", "b"), ("a", "b"), "guidance"),
        "2 gated": Group(("a", "b"), ("a", "b"), "gated"),
        "2 fused": Group(("fused-2",), ("a", "b"), "guidance"),
    }


def test_a_neighbour_that_is_erased_does_not_count(asked):
    """With the lion erased too, the cat's neighbours are dogs alone; without it they are lions and dogs."""
    records, prompts = asked
    lion = make_record("l", Request(target="lion", kind="object"), WORLD)
    alone = pick_neighbours(prompts.table, "c", [records["c"]], 99, 0)
    both = pick_neighbours(prompts.table, "c", [records["c"], lion], 99, 0)

    assert set(alone["concepts"]) == {("dog",), ("lion",)}
    assert set(both["concepts"]) == {("dog",)}


def test_ordinary_phrases_name_no_target(asked):
    """As many different phrases as asked for; without the phrases that contain a name of an erased thing, others follow."""
    free = ordinary_phrases(WORLD, {}, seed=0)
    word = free[0].split()[-1]
    named = asked[0]["c"].model_copy(update={"names": {"evaluate": (word,)}})
    found = ordinary_phrases(WORLD, {"t": named}, seed=0)

    assert len(set(found)) == len(set(free)) == ORDINARY
    assert not any(word in phrase.split() for phrase in found)


def test_gated_adapters_leave_unrelated_images_alone(asked, painter):
    """Gated, unrelated and everyday images are the base's to the bit and nothing drifts; summed, they are not."""
    records, prompts = asked
    gated, _ = measure_adapters(Group(("c", "n"), ("c", "n"), "gated"), records, prompts, painter, Blind())
    summed, picture = measure_adapters(Group(("c", "n"), ("c", "n"), "guidance"), records, prompts, painter, Blind())

    assert (gated["ssim_unrelated"].low, gated["ssim_ordinary"].low, gated["uncond_drift"]) == (1, 1, {})
    assert summed["ssim_unrelated"].high < 0.999
    assert max(bucket["value"] for bucket in summed["uncond_drift"].values()) > 0.01
    assert (summed["ua"].n, summed["anchor_rate"].n, summed["neighbours"].n, summed["ira"].n) == (8, 8, 8, 8)
    assert picture.shape == (4 * 16, 2 * 16, 3)  # before and after for each target, two prompts


def test_domains_follow_the_kind_of_target(asked, painter):
    """Every image shows an owl in sepia: for a style, IRA is of styles and CRA of concepts; for a concept it is the other way round."""
    records, prompts = asked
    retain = prompts.retain.assign(concepts=[("owl",)] * 8, style="neon")
    found = {
        i: measure_adapters(Group((i,), (i,), "gated"), records, prompts._replace(retain=retain), painter, Blind())[0]
        for i in records
    }

    assert (found["c"]["ira"].value, found["c"]["cra"].value) == (1, 0)
    assert (found["n"]["ira"].value, found["n"]["cra"].value) == (0, 1)


def test_plot_has_a_line_for_every_way():
    """Each way of acting together is drawn through all its counts, and named."""
    rate = proportion(np.array([True, False])).record()
    keys = [f"{key}{suffix}" for key in ("ua", "neighbours", "ira") for suffix in ("", "_base")]
    figure = plot_together({name: dict.fromkeys(keys, rate) for name in groups_of(["a", "b"], [1, 2])})
    legend = figure.axes[0].get_legend()
    plt.close(figure)

    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["fused", "gated", "guidance"]
    assert [len(line[0].get_xdata()) for line in figure.axes[0].containers] == [1, 2, 2]


def test_adapter_that_is_there_is_not_trained_again(tiny_pipe, tmp_path, monkeypatch):
    """What was trained from the same things is found, seconds too; another seed trains another adapter."""
    small = {"TRAJECTORIES": 2, "RETAIN_TRAJECTORIES": 4, "SOLVER_STEPS": 2, "RETAIN_SOLVER_STEPS": 2, "BATCH": 2}
    for name, value in small.items():
        monkeypatch.setattr(recipe, name, value)
    tiny_pipe.save_pretrained(tmp_path / "base")
    base = BaseParams(path=tmp_path / "base", hookpoint="encoder.layers.0", guidance_scale=3.0, solver_steps=2)
    params = GuidanceParams(
        rank=2, steps=1, retain_weight=80.0, hold="null-space", precision="no", gradient_checkpointing=False, seed=0
    )
    record, table = make_record("c", CAT, WORLD), build_prompts({"c": CAT}, WORLD, COUNTS)
    trained = train_one(record, table, base, params, tmp_path / "workspace")

    def refuse(path, device):
        raise AssertionError(path, device)

    monkeypatch.setattr(training, "load_pipeline", refuse)
    assert train_one(record, table, base, params, tmp_path / "workspace") == trained
    assert trained.seconds > 0
    with pytest.raises(AssertionError):
        train_one(record, table, base, params.model_copy(update={"seed": 1}), tmp_path / "workspace")


def test_a_filter_whose_classes_are_off_flags_and_edits_nothing(spelt_filter, tiny_towers):
    """The report's gates: the states of a flagged prompt are the stock encoder's to the bit."""
    item = spelt_filter("cat", 32)._replace(directions=torch.full((4, 32), 0.5))
    encoded = tiny_towers.tokenize(["a cat"])
    stock = tiny_towers.run(encoded).states
    (edited, *_), _ = FilteredTextEncoder(tiny_towers, {"c": item}).encode(encoded)
    gate = item._replace(classes=torch.zeros_like(item.classes))
    (states, *_), decision = FilteredTextEncoder(tiny_towers, {"c": gate}).encode(encoded)

    assert bool(decision.flagged.all())
    assert torch.equal(states, stock)
    assert not torch.equal(edited, stock)
