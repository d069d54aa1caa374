import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from components.features.regression import fit_score


@pytest.fixture(scope="module")
def tokens():
    """(codes, labels) of 400 tokens: two names, and tokens to retain."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, 400)
    return rng.exponential(size=(400, 6)) + np.eye(3)[labels] @ rng.normal(size=(3, 6)), labels


def test_fit_score_is_a_balanced_regression(tokens):
    """scikit-learn's regression with its own balancing, name by name, finds the same weights and bias."""
    codes, labels = tokens
    weights, bias = fit_score(codes, labels, np.ones(len(labels)))
    spread = codes.std(0) + 1e-6

    for name in range(2):
        use = (labels == name) | (labels < 0)
        model = LogisticRegression(C=0.1, class_weight="balanced", solver="newton-cholesky")
        model.fit(codes[use] / spread, labels[use] == name)
        np.testing.assert_allclose(weights[name], model.coef_[0] / spread, atol=5e-4)
        np.testing.assert_allclose(bias[name], model.intercept_[0], atol=5e-4)


def test_fit_score_counts_are_repeated_rows(tokens):
    """A row that counts three times is three rows."""
    codes, labels = tokens
    counts = np.random.default_rng(1).integers(1, 4, len(labels))
    found = fit_score(codes, labels, counts)
    wanted = fit_score(np.repeat(codes, counts, 0), np.repeat(labels, counts), np.ones(counts.sum()))

    np.testing.assert_allclose(found.weights, wanted.weights, atol=1e-3)
    np.testing.assert_allclose(found.bias, wanted.bias, atol=1e-3)


def test_fit_score_separates_what_can_be_separated():
    """Each name's tokens score above all others by the row of that name, and other names do not count against it."""
    codes = np.array([[0.0, 0.1], [0.1, 0.0], [3.0, 0.0], [2.5, 0.1], [0.0, 2.0], [0.1, 2.2]] * 20)
    labels = np.array([-1, -1, 0, 0, 1, 1] * 20)
    weights, bias = fit_score(codes, labels, np.ones(len(labels)))
    scores = codes @ weights.T + bias

    assert scores[labels == 0, 0].min() > 0 > scores[labels < 0, 0].max()
    assert scores[labels == 1, 1].min() > 0 > scores[labels < 0, 1].max()
