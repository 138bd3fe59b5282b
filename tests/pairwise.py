"""Pairwise covering: of a product of choices, as few combinations as hold every pair of choices at least once."""

import itertools
from collections.abc import Sequence
from typing import Any


def pairwise(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combinations with one of each of `choices`, such that each two values of different ones meet.

    Most defects need two things to come together, and next to none need three (Kuhn, Wallace and Gallo, 2004,
    https://doi.org/10.1109/TSE.2004.24). Greedy, and the same each time.
    """
    product = list(itertools.product(*(range(len(each)) for each in choices)))

    def pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(combination), 2))

    missing = set().union(*map(pairs, product)) if len(choices) > 1 else set()
    chosen = [] if len(choices) > 1 else product
    while missing:
        best = max(product, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return [tuple(each[index] for each, index in zip(choices, combination, strict=True)) for combination in chosen]
