"""Energy: joules of prefill and decode, from the device's own counter.

The counter moves in steps that are longer than a prefill. So each phase begins and ends at such a step, for which the
device waits idle, and its work is repeated for seconds, after the samples and apart from them: first nothing is done,
for the power that the device takes anyhow with the model in its memory; then prefills; then whole generations, from
which as many prefills are subtracted, which leaves their decode steps. What is used while idle is told, and subtracted,
too.
"""

import time
from collections.abc import Callable

from gptbench.engine import Engine
from gptbench.generate import Workload
from gptbench.measure.load import observed
from gptbench.measure.sensors import Sensor
from gptbench.schema.energy import Energy, Spent

SECONDS = 4.0
"""At least, of each phase: on Hopper forty times what lies between two changes of NVML's counter, 0.1 s."""
PATIENCE_S = 2.0
"""That the counter has to move."""
MIN_SHARE = 0.1
"""Of a generation's energy, that its decode steps must have, to be told from its prefill."""
SETTLE_S = 0.5
"""After the last work, before the device counts as idle."""


def measure_energy(engine: Engine, workload: Workload, sensor: Sensor, seconds: float = SECONDS) -> Energy | None:
    """Runs the phases, each for so many seconds at least; None where the device has no counter.

    Raises:
        RuntimeError: the counter did not move, or decode is lost in what a prefill uses.
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
        """Joules, seconds and repetitions."""
        start, before = at_a_step(sensor)
        times = 0
        while time.perf_counter() - start < seconds or not times:
            work()
            device.synchronize()
            times += 1
        end, after = at_a_step(sensor)
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
        raise RuntimeError(f"{steps} decode steps use too little beside a prefill to be told from it")
    return Energy(sensor.counter, idle_w, of_prefill, of_decode, load)


def at_a_step(sensor: Sensor) -> tuple[float, float]:
    """When the counter moves next, and where it stands then.

    Raises:
        RuntimeError: it does not.
    """
    before = sensor.energy_j()
    start = time.perf_counter()
    while (joules := sensor.energy_j()) == before:
        if time.perf_counter() - start > PATIENCE_S:
            raise RuntimeError(f"{sensor.counter} did not move in {PATIENCE_S:g} s")
    return time.perf_counter(), joules
