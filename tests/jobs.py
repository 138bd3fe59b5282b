"""Jobs that run in this process as Hydra would run them."""

from pathlib import Path

from gptbench.config import Config, DeviceConfig, DeviceKind
from gptbench.device.group import DeviceGroup
from gptbench.execute.job import Attempt, Job
from gptbench.execute.reuse import Session
from gptbench.execute.run import run
from gptbench.measure import roof
from gptbench.measure.environment import environment
from gptbench.present.terminal import Terminal


def job_of(of: Config, folder: Path, sweep: Path | None = None) -> Job:
    return Job(of, of, ["python", "-m", "gptbench"], folder, sweep)


def run_job(of: Config, folder: Path, sweep: Path | None = None, session: Session | None = None) -> Attempt:
    attempt = Attempt(job_of(of, folder, sweep))
    run(attempt, session or Session(), Terminal(quiet=False))
    return attempt


def small_read_roof(outputs: Path) -> list[float]:
    """Seconds of the launches that the roof of these outputs is of."""
    roof.CPU_BUFFER_BYTES, roof.CACHES = 2**24, 0
    on = DeviceGroup.of(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu, threads=1))
    return roof.Roofs(on, environment(on, None), outputs).read().seconds
