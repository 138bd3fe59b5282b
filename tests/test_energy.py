"""Energy: what was used while idle is subtracted, and a generation's prefill from its decode."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gptbench.device.group import DeviceGroup
from gptbench.measure import energy
from gptbench.measure.energy import measure_energy
from gptbench.measure.sensors import Sensor, sensor_of
from gptbench.schema.energy import Energy, Spent
from gptbench.schema.summary import part_metrics, summary
from tests.results import made_result
from tests.test_measure import EAGER, device, make_engine, make_workload

ASKING_S, STEP_OF_COUNTER_J = 1e-4, 5.0
IDLE_W, PREFILL_J, PREFILL_S, STEP_J, STEP_S, STEPS, ROWS, PROMPT = 100.0, 3.0, 0.01, 0.5, 0.001, 20, 2, 7


class Clockwork(Sensor):
    """A device whose time and energy are known exactly, in the place of a clock, a counter and an engine."""

    counter: str | None = "clockwork"
    prompt_length, batch = PROMPT, ROWS

    def __init__(self) -> None:
        self.now = self.joules = 0.0
        self.device, self.calls = self, ""

    def pass_time(self, seconds: float, watts: float = IDLE_W) -> None:
        self.now += seconds
        self.joules += seconds * watts

    def energy_j(self) -> float:
        self.pass_time(ASKING_S)
        return self.joules // STEP_OF_COUNTER_J * STEP_OF_COUNTER_J

    def seed(self, seed: int) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def prefill(self, prompt: object) -> None:
        self.calls += "p"
        self.pass_time(PREFILL_S, PREFILL_J / PREFILL_S)

    def decode(self) -> None:
        self.calls += "d"
        self.pass_time(STEP_S, STEP_J / STEP_S)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    found = Clockwork()
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: found.now, sleep=found.pass_time))
    return found


WORKLOAD: Any = SimpleNamespace(new_tokens=STEPS + 1, prompt=None, config=SimpleNamespace(seed=1))


def test_prefill_and_decode_are_told_apart(clockwork: Clockwork) -> None:
    engine: Any = clockwork
    found = measure_energy(engine, WORKLOAD, clockwork, seconds=1.0)
    assert found is not None
    assert found.idle_w == pytest.approx(IDLE_W, rel=0.01)
    result = replace(made_result(), energy=found)
    metrics = part_metrics(result, "energy")
    # The counter's steps are waited for: they leave no more error than asking it takes.
    assert metrics["decode_joules_per_token"] == pytest.approx((STEP_J - IDLE_W * STEP_S) / ROWS, rel=0.005)
    expected = (PREFILL_J - IDLE_W * PREFILL_S) / (ROWS * PROMPT)
    assert metrics["prefill_joules_per_token"] == pytest.approx(expected, rel=0.005)
    assert metrics["decode_tokens_per_joule"] == pytest.approx(1 / metrics["decode_joules_per_token"])
    assert metrics["idle_w"] == pytest.approx(IDLE_W, rel=0.01)
    assert summary(result).items() >= metrics.items()


def test_each_phase_lasts_as_long_as_asked(clockwork: Clockwork) -> None:
    engine: Any = clockwork
    found = measure_energy(engine, WORKLOAD, clockwork, seconds=1.0)
    assert found is not None
    assert 1.0 <= found.prefill.seconds < 1.2
    assert found.load is not None and found.load.seconds > 0
    generations = clockwork.calls.count("p" + "d" * STEPS) - 1  # the first is none of a phase
    assert generations * (PREFILL_S + STEPS * STEP_S) >= 1.0


def test_without_a_counter_there_is_none(clockwork: Clockwork) -> None:
    engine: Any = clockwork
    clockwork.counter = None
    assert measure_energy(engine, WORKLOAD, clockwork) is None
    assert part_metrics(made_result(), "energy") == {}


def test_a_counter_that_stands_still_is_an_error(clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = clockwork
    monkeypatch.setattr(Clockwork, "energy_j", lambda self: self.pass_time(ASKING_S) or 5.0)
    with pytest.raises(RuntimeError, match="did not change"):
        measure_energy(engine, WORKLOAD, clockwork, seconds=1.0)


def test_decode_that_is_lost_in_its_prefill_is_an_error(clockwork: Clockwork) -> None:
    engine: Any = clockwork
    few: Any = SimpleNamespace(new_tokens=2, prompt=None, config=SimpleNamespace(seed=1))
    clockwork.prefill = lambda prompt: clockwork.pass_time(1.0, 700.0)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="1 decode steps use too little"):
        measure_energy(engine, few, clockwork, seconds=1.0)


def test_what_is_all_idle_has_no_tokens_per_joule() -> None:
    phase = Spent(joules=90.0, seconds=1.0, tokens=10)
    metrics = part_metrics(replace(made_result(), energy=Energy("counter", IDLE_W, phase, phase)), "energy")
    assert metrics["decode_joules_per_token"] == pytest.approx(-1.0)
    assert "decode_tokens_per_joule" not in metrics


@pytest.mark.gpu
def test_a_real_gpu_uses_more_than_idle() -> None:
    on = device("cuda")
    engine, workload = make_engine(EAGER, on), make_workload(on)
    start = time.perf_counter()
    found = measure_energy(engine, workload, sensor_of(DeviceGroup((on,))), seconds=1.0)
    assert found is not None
    assert time.perf_counter() - start < 30
    assert 20 < found.idle_w < 500
    assert 0.9 * found.idle_w < found.decode.watts < 1000
