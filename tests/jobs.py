"""Jobs run in this process, as Hydra would ask for them."""

from pathlib import Path

from gptbench.config import Config
from gptbench.execute.job import Attempt, Job
from gptbench.execute.reuse import Session
from gptbench.execute.run import run
from gptbench.present.terminal import Terminal


def job_of(of: Config, folder: Path, sweep: Path | None = None) -> Job:
    return Job(of, of, ["python", "-m", "gptbench"], folder, sweep)


def run_job(of: Config, folder: Path, sweep: Path | None = None, session: Session | None = None) -> Attempt:
    attempt = Attempt(job_of(of, folder, sweep))
    run(attempt, session or Session(), Terminal(quiet=False))
    return attempt
