import matplotlib.pyplot as plt
import numpy as np

from components.collect.concepts import known_targets
from components.evaluate.metrics import proportion
from components.requests.requests import load_requests
from research.guidance.report import FUSED, GATED, JOINTLY, MORE, Group, groups_of, plot_together, to_act_together


def test_groups_are_measured_on_what_they_erase():
    """Summed and gated groups are the same first adapters, a fused one stands for them, the joint one for the fewest together."""
    found = groups_of(["a", "b", "c"], [3, 1, 2], jointly=True, fused=True)

    assert found == {
        "1": Group(["a"], 1),
        f"1, {GATED}": Group(["a"], 1, gated=True),
        "2": Group(["a", "b"], 2),
        f"2, {GATED}": Group(["a", "b"], 2, gated=True),
        "3": Group(["a", "b", "c"], 3),
        f"3, {GATED}": Group(["a", "b", "c"], 3, gated=True),
        f"2, {FUSED}": Group([f"{FUSED} 2"], 2),
        f"3, {FUSED}": Group([f"{FUSED} 3"], 3),
        f"2, {JOINTLY}": Group([JOINTLY], 2),
    }


def test_no_anchor_is_erased_by_another_that_acts():
    """Those that the report adds draw none of what acts beside them, so that an image of it never counts as a success."""
    requests = to_act_together(20, load_requests() | MORE, seed=0)
    erased = {target for request in requests.values() for target in known_targets(request)}

    assert list(requests)[:4] == [*load_requests(), *MORE]
    assert {"ghost", "alien"} <= {request.target for request in requests.values()}
    assert not erased & {request.anchor for request in requests.values()}
    assert sum(bool(request.anchor) for request in requests.values()) == 20


def test_groups_of_one_have_no_joint_training():
    """One adapter trained on one request is no joint training."""
    assert list(groups_of(["a"], [1], jointly=True, fused=True)) == ["1", f"1, {GATED}"]
    assert JOINTLY not in "".join(groups_of(["a", "b"], [1, 2], jointly=False, fused=False))


def test_plot_has_a_line_for_every_way():
    """Each way of acting together is drawn through all its counts, in every panel."""
    rate = proportion(np.array([True, False])).record()
    keys = ("ua", "neighbours", "concepts_kept")
    found = {
        name: dict.fromkeys([*keys, *(f"{k}_base" for k in keys)], rate)
        for name in groups_of(["a", "b"], [1, 2], jointly=True, fused=True)
    }
    figure = plot_together(found)
    legend = figure.axes[0].get_legend()
    plt.close(figure)

    assert legend is not None
    assert sorted(t.get_text() for t in legend.get_texts()) == sorted(["summed", GATED, FUSED, JOINTLY])
    assert [len(c[0].get_xdata()) for c in figure.axes[0].containers] == [1, 2, 2, 1]
