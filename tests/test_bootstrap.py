import numpy as np
import pytest

from training.bootstrap import bootstrap_interval


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide(rng):
    values = rng.normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(lambda drawn: values[drawn].mean(), len(values))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_it_covers_the_truth_about_as_often_as_it_says(rng):
    covered = 0
    for _ in range(200):
        values = rng.exponential(1.0, 50)
        low, high = bootstrap_interval(lambda drawn, values=values: values[drawn].mean(), 50, resamples=200)
        covered += low <= 1.0 <= high
    assert 0.87 < covered / 200 < 0.99


def test_draws_depend_on_seed_and_number_alone():
    draws = [[], [], []]
    for taken, seed in zip(draws, (0, 0, 1), strict=True):
        bootstrap_interval(lambda drawn, taken=taken: taken.append(drawn) or 0.0, 10, resamples=3, seed=seed)
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (np.array(draws[0]) != np.array(draws[2])).any()


def test_one_unit_has_no_interval():
    with pytest.raises(ValueError, match="`num_units` must be at least 2, got 1"):
        bootstrap_interval(np.mean, 1)
