"""The covering that other tests choose their cases by."""

import itertools

from tests.pairwise import pairwise


def test_every_pair_meets_in_far_fewer_combinations() -> None:
    choices = ["abcd", range(3), (True, False), (None, 1.0, 2.0)]
    chosen = pairwise(*choices)
    assert len(chosen) == len(set(chosen)) <= 14 < 4 * 3 * 2 * 3
    for one, two in itertools.combinations(range(4), 2):
        met = {(combination[one], combination[two]) for combination in chosen}
        assert met == set(itertools.product(choices[one], choices[two]))
    assert pairwise("ab") == [("a",), ("b",)]
