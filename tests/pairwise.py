"""Pairwise covering: of a product of choices, as few combinations as hold every pair of choices at least once; and
cases in one item of pytest."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
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


def for_each(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As ``pytest.mark.parametrize``, but all in one item, which collects and begins quicker: for arithmetic that needs
    no fixtures of its own. An error says of which values it is."""
    named = [name.strip() for name in names.split(",")]
    cases = [dict(zip(named, value if len(named) > 1 else (value,), strict=True)) for value in values]

    def looped(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            for case in cases:
                try:
                    test(**case, **fixtures)
                except Exception as error:
                    error.add_note(f"with {case}")
                    raise

        signature = inspect.signature(test)
        rest = [parameter for name, parameter in signature.parameters.items() if name not in named]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return looped
