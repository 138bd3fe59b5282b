"""Which jobs a sweep has: the full product, paired lists, random points, and those of a Sobol sequence."""

import math

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gptbench.base.errors import UserError
from gptbench.config import SampledSweepConfig, SweepConfig
from gptbench.sweep import Product, Random, Sobol, Space


def space(*arguments: str, paired: tuple[str, ...] = ()) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(arguments)), list(paired))


def product(*arguments: str, paired: tuple[str, ...] = ()) -> list[str]:
    config = SweepConfig(_target_="gptbench.sweep.Product", name="product")
    return [" ".join(job) for job in Product(config).draw(space(*arguments, paired=paired))]


def drawn(kind: type[Random], jobs: int, *arguments: str, seed: int = 0, paired: tuple[str, ...] = ()) -> list[str]:
    config = SampledSweepConfig(_target_=f"gptbench.sweep.{kind.__name__}", name="drawn", jobs=jobs, seed=seed)
    return [" ".join(job) for job in kind(config).draw(space(*arguments, paired=paired))]


def numbers(jobs: list[str], position: int = 0) -> list[float]:
    return [float(job.split()[position].partition("=")[2]) for job in jobs]


def test_the_product_has_every_combination_the_last_fastest() -> None:
    assert product("x=0", "a=1,2", "b=range(3,5)", "c=choice(u,v)") == [
        f"x=0 a={a} b={b} c={c}" for a in (1, 2) for b in (3, 4) for c in "uv"
    ]
    assert product("x=0") == ["x=0"]
    assert product("a=1,2", "a=3,4") == ["a=3", "a=4"], "as Hydra has it, the last one counts"


def test_what_is_swept_is_told_from_what_is_not() -> None:
    assert space("x=0", "a=1,2", "y=choice(7)", "b=interval(0,1)").swept == ("a", "b")


def test_paired_lists_go_together() -> None:
    assert product("a=1,2", "m=p,q", "b=3,4", paired=("a", "b")) == [
        "a=1 b=3 m=p",
        "a=1 b=3 m=q",
        "a=2 b=4 m=p",
        "a=2 b=4 m=q",
    ]
    jobs = drawn(Random, 20, "a=1,2,3", "b=4,5,6", "c=interval(0,1)", paired=("a", "b"))
    assert {tuple(job.split()[:2]) for job in jobs} == {("a=1", "b=4"), ("a=2", "b=5"), ("a=3", "b=6")}


@pytest.mark.parametrize(
    ("arguments", "paired", "told"),
    [
        (["a=1,2", "b=1,2,3"], ("a", "b"), "sweep.paired=a,b: expected lists of the same length: a has 2, b has 3"),
        (["a=1,2", "b=1"], ("a", "b"), "sweep.paired=b: expected lists that are swept: a"),
        (["a=1", "b=1"], ("a", "c"), "sweep.paired=a: expected lists that are swept: there are none"),
        (["a=1,2", "b=interval(0,1)"], ("a", "b"), "sweep.paired=b: expected lists that are swept: a"),
        (["a=interval(0,1)"], (), "a=interval(0.0,1.0): expected a list with sweep=product"),
        (["sweep.resume=true,false"], (), "sweep.resume: expected one value"),
        (["sweep=random,sobol"], (), "sweep: expected one value"),
        (["a=interval(2,1)"], (), "a=interval(2.0,1.0): expected the lower end first"),
        (["a=tag(log,interval(0,1))"], (), "expected an interval over 0"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], paired: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError) as caught:
        product(*arguments, paired=paired)
    assert told in str(caught.value)


@pytest.mark.parametrize("kind", [Random, Sobol])
def test_drawn_jobs_lie_in_the_space_differ_and_can_be_drawn_again(kind: type[Random]) -> None:
    arguments = ("x=0", "a=interval(-1,3)", "b=int(interval(2,4))", "c=choice(u,v,w)")
    jobs = drawn(kind, 64, *arguments)
    assert len(set(jobs)) == len(jobs) == 64
    assert {job.split()[0] for job in jobs} == {"x=0"}
    assert all(-1 <= value <= 3 for value in numbers(jobs, 1))
    assert {job.split()[2] for job in jobs} == {"b=2", "b=3", "b=4"}
    assert {job.split()[3] for job in jobs} == {"c=u", "c=v", "c=w"}
    assert jobs == drawn(kind, 64, *arguments)
    assert jobs != drawn(kind, 64, *arguments, seed=1)


@pytest.mark.parametrize("kind", [Random, Sobol])
def test_a_small_space_is_used_up(kind: type[Random]) -> None:
    assert set(drawn(kind, 50, "a=1,2", "b=u,v,w")) == set(product("a=1,2", "b=u,v,w"))
    assert drawn(kind, 5, "a=1") == ["a=1"]


def test_a_logarithmic_interval_gives_each_power_of_ten_the_same_share() -> None:
    values = numbers(drawn(Sobol, 300, "a=tag(log,interval(0.001,1))"))
    shares = np.histogram(np.log10(values), bins=3, range=(-3, 0))[0] / len(values)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_sobol_fills_a_square_more_evenly_than_random_points() -> None:
    """Of 64 points, one in each of 64 cells."""

    def empty_cells(kind: type[Random]) -> int:
        jobs = drawn(kind, 64, "a=interval(0,8)", "b=interval(0,8)")
        cells = {(math.floor(a), math.floor(b)) for a, b in zip(numbers(jobs), numbers(jobs, 1), strict=True)}
        return 64 - len(cells)

    assert empty_cells(Sobol) == 0
    assert empty_cells(Random) > 10
