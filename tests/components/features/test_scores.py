import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from components.common.errors import UserError
from components.common.roc import auroc, roc
from components.features.directions import replacement_directions
from components.features.scores import (
    budget_threshold,
    conformal_threshold,
    context_features,
    gate_threshold,
    select_features,
    strictest_threshold,
    tail_threshold,
)
from components.filter.positions import position_classes
from components.filter.scores import position_scores, prompt_scores


def test_auroc_equals_sklearn():
    """With ties and without, the Mann-Whitney form equals scikit-learn's."""
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 9, 50) + 2.0, rng.integers(0, 9, 70).astype(float)
    wanted = roc_auc_score([1] * 50 + [0] * 70, np.concatenate([positives, negatives]))

    assert auroc(positives, negatives) == pytest.approx(wanted)


def test_roc_ends_at_one():
    """The loosest threshold flags everything, the strictest at most the single best score."""
    curve = roc(np.array([3.0, 2.0]), np.array([1.0, 2.5]))

    assert (curve.tpr[-1], curve.fpr[-1]) == (1.0, 1.0)
    assert (curve.tpr[0], curve.fpr[0]) == (0.5, 0.0)


def test_scores_never_see_bos_or_padding():
    """Positions outside the mask, however high, do not count (invariant 3)."""
    scores = torch.tensor([[9.0, 1.0, 2.0, 7.0]])
    scored = torch.tensor([[False, True, True, False]])

    assert prompt_scores(scores, scored).tolist() == [2.0]


def test_position_scores_by_hand():
    """The better of two names: 2·3 - 1 against 1·3 + 1."""
    codes = torch.tensor([[3.0]])

    assert position_scores(codes, torch.tensor([[2.0], [1.0]]), torch.tensor([-1.0, 1.0])).tolist() == [5.0]


def test_features_at_different_words_do_not_add_up():
    """Two features that make the concept at one word make nothing when each fires at a word of its own."""
    weights, bias = torch.tensor([[1.0, 1.0]]), torch.zeros(1)
    together = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    apart = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    scored = torch.ones(1, 2, dtype=torch.bool)

    assert prompt_scores(position_scores(together, weights, bias), scored).item() == 2
    assert prompt_scores(position_scores(apart, weights, bias), scored).item() == 1


def test_select_features_by_hand():
    """A latent that fires for the target and a neighbour is no feature; one that fires for one alias alone is."""
    names = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.9, 0.0]])  # cat, kitty: shared, cat, kitty, never
    retain = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]])  # neighbour, retain

    indices, contrast = select_features(names, retain, max_features=8, min_contrast=0.5)

    assert sorted(indices.tolist()) == [1, 2]
    assert contrast.tolist() == pytest.approx([0.9, 0.9])


def test_select_features_gives_every_name_its_turn():
    """With room for two and three strong latents of one name, the other name's best is still taken."""
    names = torch.tensor([[0.9, 0.8, 0.7, 0.0], [0.0, 0.0, 0.0, 0.6]])

    indices, _ = select_features(names, torch.zeros(1, 4), max_features=2, min_contrast=0.5)

    assert indices.tolist() == [0, 3]


def test_select_features_without_any_is_one_sentence():
    """A target that no latent separates from the rest is refused, with the parameter to change."""
    with pytest.raises(UserError, match=r"no latent separates the target .* lower features.min_contrast"):
        select_features(torch.ones(1, 3), torch.ones(1, 3), max_features=2, min_contrast=0.5)


def test_context_features_by_hand():
    """Of the latents not yet taken, those that fire at the target alone or at its doubles alone; never one of both."""
    names = torch.tensor([[1.0, 0.9, 0.0, 0.8, 0.0]])  # taken, target's, doubles', both, neither
    mistaken = torch.tensor([0.0, 0.1, 0.7, 0.8, 0.0])

    assert context_features(names, mistaken, torch.tensor([0]), 2).tolist() == [1, 2]
    assert len(context_features(names, mistaken, torch.tensor([0]), 99)) == 4


def test_conformal_threshold_keeps_its_promise():
    """Over 2,000 draws of calibration and fresh scores the mean false-positive rate is the budget, within 3 errors."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(2000):
        threshold = conformal_threshold(rng.normal(size=199), 0.05)
        rates.append((rng.normal(size=500) >= threshold).mean())

    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(0.05, abs=3 * error)


def test_strictest_threshold_holds_in_every_group():
    """A group that scores higher sets the threshold for all; one too small to show the budget is counted with the first."""
    low, high = np.arange(2000.0), np.arange(2000.0) + 500

    assert (
        strictest_threshold([low, high], 0.01)
        == conformal_threshold(high, 0.01)
        == strictest_threshold([high, low], 0.01)
    )
    assert strictest_threshold([low], 0.01) == conformal_threshold(low, 0.01)
    assert strictest_threshold([low, high[-99:]], 0.01) == conformal_threshold(np.concatenate([low, high[-99:]]), 0.01)
    assert conformal_threshold(np.concatenate([low, high]), 0.01) < strictest_threshold([low, high], 0.01)


@pytest.mark.parametrize("draw", ["normal", "exponential", "logistic"])
def test_tail_threshold_tells_what_is_rarer_than_the_data(draw):
    """From 5,000 scores the threshold of one in 50,000: fresh scores reach it at most twice as often on average, and not never."""
    rng = np.random.default_rng(0)
    fresh = getattr(rng, draw)(size=1_000_000)
    rates = [(fresh >= tail_threshold(getattr(rng, draw)(size=5000), 2e-5)).mean() for _ in range(20)]

    assert 1e-6 < np.mean(rates) < 4e-5


def test_budget_threshold_goes_by_rank_where_it_can():
    """A budget of one prompt in N or more is conformal; below, the tail decides, and never more leniently than a wider budget."""
    scores = np.random.default_rng(1).normal(size=20_000)

    assert budget_threshold(scores, 0.001) == conformal_threshold(scores, 0.001)
    strict = [budget_threshold(scores, fpr) for fpr in (1e-3, 1e-4, 1e-5, 2e-6)]
    assert strict == sorted(strict)
    assert len(set(strict)) == 4
    with pytest.raises(UserError, match=r"cannot support a false-positive budget of 1.0e-07"):
        budget_threshold(scores, 1e-7)


def test_gate_threshold_by_hand():
    """An adapter that may act on every prompt has no threshold; a tenth of the prompts lies above that of a tenth."""
    scores = np.arange(1000.0)

    assert gate_threshold([scores], 1.0) == gate_threshold([scores], 7.0) == -np.inf
    assert (scores >= gate_threshold([scores], 0.1)).sum() == 99


def test_conformal_threshold_needs_enough_prompts():
    """Too few benign prompts for the budget are refused, not rounded."""
    with pytest.raises(UserError, match=r"10 benign calibration prompts cannot support .* 0.001"):
        conformal_threshold(np.zeros(10), 0.001)


def test_position_classes_by_hand():
    """BOS a [cat] here EOS pad: nothing before the target, then target, later, eos, padding."""
    scored = torch.tensor([[False, True, True, True, True, False]])
    fires = torch.tensor([[False, False, True, False, False, False]])

    assert position_classes(fires, scored).tolist() == [[-1, -1, 0, 1, 2, 3]]


def test_position_classes_of_eos_alone():
    """A prompt whose EOS alone fires is edited from its end on; one where nothing fires is not edited."""
    scored = torch.tensor([[False, True, True, False]])
    fires = torch.tensor([[False, False, True, False]])

    assert position_classes(fires, scored).tolist() == [[-1, -1, 2, 3]]
    assert position_classes(torch.zeros_like(fires), scored).tolist() == [[-1, -1, -1, -1]]


def test_replacement_directions_average_pairs_of_equal_length():
    """By hand: two usable pairs with steps 1 and 3 at the target average to 2; a pair of unequal length is left out."""
    target = torch.zeros(3, 3, 1)
    anchor = torch.tensor([[[0.0], [1.0], [5.0]], [[0.0], [3.0], [5.0]], [[0.0], [99.0], [99.0]]])
    classes = torch.tensor([[-1, 0, 2]] * 3)

    found = replacement_directions(target, anchor, classes, torch.tensor([2, 2, 2]), torch.tensor([2, 2, 1]))

    assert found.squeeze(1).tolist() == [2.0, 0.0, 5.0, 0.0]
