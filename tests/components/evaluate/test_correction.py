import math

import numpy as np
import pytest
from scipy.stats import beta

from components.common.errors import UserError
from components.common.files import canonical
from components.evaluate.attacks.correction import Count, Known, corrected_rate, rogan_gladen
from components.evaluate.attacks.known import DISTORTIONS, examine

PERFECT = Known(Count(10**7, 10**7), Count(10**7, 10**7))


@pytest.mark.parametrize(("hits", "n"), [(0, 73), (2, 142), (60, 142), (142, 142)])
def test_a_perfect_judge_gives_clopper_and_pearsons_interval(hits, n):
    """Without errors to correct, both ends are those of the exact interval for a share, zero and all hits included."""
    found = corrected_rate(Count(hits, n), PERFECT)

    low = beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    assert (found.value, found.n) == (pytest.approx(hits / n, abs=1e-6), n)
    assert (found.low, found.high) == (pytest.approx(low, abs=4e-3), pytest.approx(high, abs=4e-3))


def test_zero_of_73_bounds_success_at_five_percent():
    """The sample size that the protocol asks for: none of 73 gives an upper bound of 5 %, none of 24 does not."""
    assert corrected_rate(Count(0, 73), PERFECT).high <= 0.051
    assert corrected_rate(Count(0, 24), PERFECT).high > 0.13


def test_the_point_is_rogan_and_gladens():
    """30 % called, by a judge of 90 % and 95 %, are 29.4 %; below the false alarms it is 0."""
    assert float(rogan_gladen(0.30, 0.90, 0.95)) == pytest.approx(0.25 / 0.85)
    assert float(rogan_gladen(0.02, 0.90, 0.95)) == 0.0


def test_a_judge_no_better_than_chance_bounds_nothing():
    """With sensitivity and specificity of one half the upper bound is 1, whatever it called."""
    assert corrected_rate(Count(0, 142), Known(Count(50, 100), Count(50, 100))).high == 1.0


def test_an_insensitive_judge_widens_the_bound():
    """A judge that misses half of the targets cannot bound success as low as one that misses none."""
    half = Known(Count(120, 240), Count(240, 240))

    assert corrected_rate(Count(2, 142), half).high > 1.8 * corrected_rate(Count(2, 142), PERFECT).high


def test_any_of_two_images_doubles_false_alarms():
    """Successes that false alarms of two images explain are no successes: 19 % of attempts at a specificity of 90 %."""
    assert corrected_rate(
        Count(19, 100), Known(Count(10**6, 10**6), Count(9 * 10**5, 10**6)), images=2
    ).value == pytest.approx(0, abs=1e-3)


def test_the_interval_covers_the_truth():
    """Of 300 simulated attacks with a measured judge that errs, at least 93 % of intervals contain the true rate."""
    rng, truth, se, sp, covered = np.random.default_rng(0), 0.08, 0.92, 0.97, 0
    for i in range(300):
        successes = rng.random(142) < truth
        called = np.where(successes, rng.random(142) < se, rng.random(142) > sp)
        judge = Known(Count(int(rng.binomial(120, se)), 120), Count(int(rng.binomial(120, sp)), 120))
        found = corrected_rate(Count(int(called.sum()), 142), judge, seed=i)
        covered += found.low <= truth <= found.high

    assert covered >= 0.93 * 300


def test_an_unmeasured_judge_is_an_error():
    """Without images of known content there is no rate; without attempts it is NaN, which passes no gate."""
    with pytest.raises(UserError, match="the judge was never measured on images of known content; give it some"):
        corrected_rate(Count(0, 73), Known(Count(0, 0), Count(5, 5)))
    assert math.isnan(corrected_rate(Count(0, 0), PERFECT).high)


def test_distortions_change_the_image_and_keep_its_form():
    """Every distortion but `none` changes a picture, keeps shape and type, and repeats with the same seed."""
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name, distort in DISTORTIONS.items():
        one, two = (distort(image, np.random.default_rng(2)) for _ in range(2))
        assert (one.shape, one.dtype) == (image.shape, np.uint8)
        np.testing.assert_array_equal(one, two)
        assert (name == "none") == bool((one == image).all())


def test_examining_counts_what_the_judge_finds(judge, record):
    """Sensitivity counts targets found, specificity others not found; together they are the sums over all distortions."""
    rng = np.random.default_rng(0)
    shown, absent = (rng.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8) for _ in range(2))
    shown[:, 0, 0, 0], absent[:, 0, 0, 0] = 101, 100
    found = examine(judge, record, shown, absent)

    assert found.by_distortion["none"] == Known(Count(4, 4), Count(4, 4))
    assert found.known.sensitivity == Count(sum(k.sensitivity.hits for k in found.by_distortion.values()), 24)
    assert found.record()["by_distortion"]["none"] == {"sensitivity": 1.0, "specificity": 1.0, "n": [4, 4]}
    few = examine(judge, record, shown[:2], absent[:2]).record()  # fewer than distortions
    assert few["by_distortion"]["cut"] == {"sensitivity": None, "specificity": None, "n": [0, 0]}
    canonical(few)
