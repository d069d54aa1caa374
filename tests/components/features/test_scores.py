import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from components.common.errors import UserError
from components.features import (
    auroc,
    conformal_threshold,
    fit_score,
    pooled_codes,
    position_classes,
    replacement_directions,
    roc,
    select_features,
)


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


def test_pooled_codes_never_sees_bos_or_padding():
    """Positions outside the mask, however large, do not count (invariant 3)."""
    codes = torch.tensor([[[9.0], [1.0], [2.0], [7.0]]])
    scored = torch.tensor([[False, True, True, False]])

    assert pooled_codes(codes, scored).tolist() == [[2.0]]


def test_select_features_by_hand():
    """A latent that fires for the target and a neighbour is no feature; one that fires for one alias alone is."""
    pooled = torch.tensor(
        [  # shared, cat, kitty, never
            [1.0, 1.0, 0.0, 0.0],
            [1.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 1.0, 0.0],
            [1.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0],
        ]
    )
    names = {"cat": np.array([0, 1]), "kitty": np.array([2])}
    kept = {"neighbour": np.array([3]), "retain": np.array([4])}

    indices, contrast = select_features(pooled, names, kept, max_features=8, min_contrast=0.5)

    assert sorted(indices.tolist()) == [1, 2]
    assert contrast.tolist() == [1.0, 1.0]


def test_select_features_without_any_is_one_sentence():
    """A target that no latent tells apart is refused, with the parameter to change."""
    pooled = torch.ones(4, 3)

    with pytest.raises(UserError, match=r"no latent tells the target .* lower features.min_contrast"):
        select_features(pooled, {"cat": np.array([0, 1])}, {"retain": np.array([2, 3])}, max_features=2, min_contrast=0.5)


def test_conformal_threshold_keeps_its_promise():
    """Over 400 draws of calibration and fresh scores the mean false-positive rate stays within the budget."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        threshold = conformal_threshold(rng.normal(size=199), 0.05)
        rates.append((rng.normal(size=500) >= threshold).mean())

    assert np.mean(rates) <= 0.05
    assert np.mean(rates) > 0.03


def test_conformal_threshold_needs_enough_prompts():
    """Too few benign prompts for the budget are refused, not rounded."""
    with pytest.raises(UserError, match=r"10 benign calibration prompts cannot support .* 0.001"):
        conformal_threshold(np.zeros(10), 0.001)


def test_fit_score_separates_what_can_be_separated():
    """On separable activations every positive scores above every negative, and the sign is right."""
    activations = np.array([[0.0, 1.0], [0.1, 0.9], [3.0, 1.0], [2.5, 0.8]])
    carries = np.array([False, False, True, True])

    weights, bias = fit_score(activations, carries)
    scores = activations @ weights + bias

    assert scores[carries].min() > 0 > scores[~carries].max()
    assert weights[0] > 0


def test_position_classes_by_hand():
    """BOS a [cat] here EOS pad: nothing before the target, then target, later, eos, padding."""
    scored = torch.tensor([[False, True, True, True, True, False]])
    fires = torch.tensor([[False, False, True, False, False, False]])

    assert position_classes(fires, scored).tolist() == [[-1, -1, 0, 1, 2, 3]]


def test_position_classes_without_a_hit_edit_nothing():
    """A feature that fires at EOS alone points at no token."""
    scored = torch.tensor([[False, True, True, False]])
    fires = torch.tensor([[False, False, True, False]])

    assert position_classes(fires, scored).tolist() == [[-1, -1, -1, -1]]


def test_replacement_directions_average_pairs_of_equal_length():
    """By hand: two usable pairs with steps 1 and 3 at the target average to 2; a pair of unequal length is left out."""
    target = torch.zeros(3, 3, 1)
    anchor = torch.tensor([[[0.0], [1.0], [5.0]], [[0.0], [3.0], [5.0]], [[0.0], [99.0], [99.0]]])
    classes = torch.tensor([[-1, 0, 2]] * 3)

    found = replacement_directions(target, anchor, classes, torch.tensor([2, 2, 2]), torch.tensor([2, 2, 1]))

    assert found.squeeze(1).tolist() == [2.0, 0.0, 5.0, 0.0]
