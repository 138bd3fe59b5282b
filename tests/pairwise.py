"""Pairwise testing: few combinations of choices that contain every pair of choices at least once; and many cases in one
test item of pytest."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def pairwise(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return combinations with one value from each of `choices`, such that every two values of different choices occur
    together.

    Most defects need two factors to come together, and hardly any need three (Kuhn, Wallace and Gallo, 2004,
    https://doi.org/10.1109/TSE.2004.24). The algorithm is greedy and deterministic.
    """
    product = list(itertools.product(*(range(len(values)) for values in choices)))

    def pairs(combination: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(combination), 2))

    missing = set().union(*map(pairs, product)) if len(choices) > 1 else set()
    chosen = [] if len(choices) > 1 else product
    while missing:
        best = max(product, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return [tuple(values[index] for values, index in zip(choices, combination, strict=True)) for combination in chosen]


def for_each(names: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrise a test like ``pytest.mark.parametrize``, but in one item, which is faster to collect and start: for
    arithmetic that needs no fixtures per case. An error names the values of its case."""
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
