"""The covering that other tests choose their cases by."""

import itertools

import pytest

from tests.pairwise import for_each, pairwise


def test_every_pair_meets_in_far_fewer_combinations() -> None:
    choices = ["abcd", range(3), (True, False), (None, 1.0, 2.0)]
    chosen = pairwise(*choices)
    assert len(chosen) == len(set(chosen)) <= 14 < 4 * 3 * 2 * 3
    for one, two in itertools.combinations(range(4), 2):
        met = {(combination[one], combination[two]) for combination in chosen}
        assert met == set(itertools.product(choices[one], choices[two]))
    assert pairwise("ab") == [("a",), ("b",)]


def test_a_loop_runs_every_case_and_names_the_one_that_fails() -> None:
    seen = []

    @for_each("a", [1, 2])
    @for_each("b, c", [(3, 4), (5, 6)])
    def run(a: int, b: int, c: int, d: int) -> None:
        seen.append((a, b, c, d))
        assert a == 1 or b == 3

    with pytest.raises(AssertionError) as failed:
        run(d=7)
    assert seen == [(1, 3, 4, 7), (1, 5, 6, 7), (2, 3, 4, 7), (2, 5, 6, 7)]
    assert failed.value.__notes__[-2:] == ["with {'b': 5, 'c': 6}", "with {'a': 2}"]
