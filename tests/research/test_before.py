"""Comparing an evaluation with the one of an earlier commit."""

import pytest

from research.models.before import is_worse, measured


@pytest.mark.parametrize(
    ("name", "before", "now", "worse"),
    [
        ("ua", {"value": 0.9, "low": 0.8, "high": 0.95}, {"value": 0.7, "low": 0.6, "high": 0.79}, True),
        ("ua", {"value": 0.9, "low": 0.8, "high": 0.95}, {"value": 0.7, "low": 0.6, "high": 0.81}, False),
        ("fpr", {"value": 0.1, "low": 0.05, "high": 0.2}, {"value": 0.3, "low": 0.21, "high": 0.4}, True),
        ("fpr", {"value": 0.3, "low": 0.21, "high": 0.4}, {"value": 0.1, "low": 0.05, "high": 0.2}, False),
        ("uncond_drift", {"value": 0.001}, {"value": 0.002}, True),
    ],
)
def test_worse_is_beyond_both_intervals(name, before, now, worse):
    """A metric is worse when its intervals part on the bad side, and a number without an interval is its own."""
    assert is_worse(before, now, name) is worse


def test_metrics_are_found_at_any_depth_under_todays_names():
    """Each metric is named by request, variant and name; `both` is read as `summed`."""
    found = dict(measured({"r": {"both": {"ua": {"value": 1.0}, "tpr": {"seen": {"value": 0.5}}}}}))

    assert list(found) == [("r", "summed", "ua"), ("r", "summed", "tpr", "seen")]
