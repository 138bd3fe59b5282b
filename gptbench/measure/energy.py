"""Measures the energy of prefill and decode, in joules, with the energy counter of the device.

The counter is updated less often than a prefill takes. So each phase starts and ends at an update, for which the device
waits idle, and repeats its work for seconds, separately from the samples. The phases are: idle, for the power that the
device draws with the model in memory; prefills; and whole generations, from which as many prefills are subtracted to
leave the decode steps. The energy of the idle device is reported as well.
"""

import time
from collections.abc import Callable

from gptbench.engine import Engine
from gptbench.generate import Workload
from gptbench.measure.load import observed
from gptbench.measure.sensors import Sensor
from gptbench.schema.energy import Energy, Spent

SECONDS = 4.0
"""Minimum duration of each phase: on Hopper, 40 times the update interval of NVML's counter, 0.1 s."""
PATIENCE_S = 2.0
"""Time within which the counter must change, in seconds."""
MIN_SHARE = 0.1
"""Minimum share of a generation's energy that its decode steps must have to be separable from its prefill."""
SETTLE_S = 0.5
"""Time after the last work before the device counts as idle, in seconds."""


def measure_energy(engine: Engine, workload: Workload, sensor: Sensor, seconds: float = SECONDS) -> Energy | None:
    """Run the phases, each for at least `seconds`, and return the energy; None if the device has no counter.

    Raises:
        RuntimeError: the counter did not change, or decode uses too little energy to be separable from the prefill.
    """
    if sensor.counter is None:
        return None
    device, rows = engine.device, engine.batch
    steps = workload.new_tokens - 1

    def prefill() -> None:
        engine.prefill(workload.prompt)

    def generation() -> None:
        prefill()
        for _ in range(steps):
            engine.decode()

    def repeated(work: Callable[[], None]) -> tuple[float, float, int]:
        """Repeat the work, and return joules, seconds and the number of repetitions."""
        start, before = next_update(sensor)
        times = 0
        while time.perf_counter() - start < seconds or not times:
            work()
            device.synchronize()
            times += 1
        end, after = next_update(sensor)
        return after - before, end - start, times

    engine.seed(workload.config.seed)
    generation()
    device.synchronize()
    with observed(sensor) as load:
        time.sleep(SETTLE_S * seconds / SECONDS)
        idle_j, idle_s, _ = repeated(lambda: time.sleep(seconds))
        joules, elapsed, times = repeated(prefill)
        whole_joules, whole_s, cycles = repeated(generation)
    idle_w = idle_j / idle_s
    of_prefill = Spent(joules, elapsed, times * rows * engine.prompt_length)
    share = cycles / times
    of_decode = Spent(whole_joules - share * joules, whole_s - share * elapsed, cycles * rows * steps)
    if of_decode.joules < MIN_SHARE * whole_joules or of_decode.seconds <= 0:
        raise RuntimeError(f"{steps} decode steps use too little energy to be separated from that of the prefill")
    return Energy(sensor.counter, idle_w, of_prefill, of_decode, load)


def next_update(sensor: Sensor) -> tuple[float, float]:
    """Wait for the next update of the counter, and return its time in seconds and its value in joules.

    Raises:
        RuntimeError: the counter did not change within `PATIENCE_S`.
    """
    before = sensor.energy_j()
    start = time.perf_counter()
    while (joules := sensor.energy_j()) == before:
        if time.perf_counter() - start > PATIENCE_S:
            raise RuntimeError(f"{sensor.counter} did not change within {PATIENCE_S:g} s")
    return time.perf_counter(), joules
