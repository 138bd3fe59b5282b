"""`--dry-run`: what a run would measure, what it needs, and the limit, without measuring anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gptbench.config import Config
from gptbench.execute.job import RaisedError, forget, read_job

if TYPE_CHECKING:
    from gptbench.build import MemoryNeed
    from gptbench.device import Device
    from gptbench.schema.machine import Roof
    from gptbench.schema.sample import Traffic


def dry_run(composed: DictConfig) -> None:
    """Hydra's task in the place of `gptbench.execute.job.job`. A sweep's jobs are never handed to it: see
    `gptbench.sweep.dry_run`.

    Raises:
        RaisedError: of whatever a run would be refused for.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = read_job(composed, hydra_config, folder).config
        from gptbench.present.console import console, write_line
        from gptbench.present.terminal import Terminal

        observer = Terminal(config.quiet)
        found = forecast(config)
        for remark in found.remarks:
            observer.remark(remark)
        if found.need is not None and found.traffic is not None:
            observer.planned(found.config, found.device, found.need)
            observer.limit(found.traffic, found.roof, found.config)
        console.print("dry run: nothing was measured", style="dim")
        write_line({"dry_run": True, **found.line()})
    except Exception as error:
        raise RaisedError(error) from error
    finally:
        forget(folder, hydra_config.output_subdir)


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before anything takes time."""

    config: Config
    """With the engine that `engine=auto` stands for here."""
    device: "Device"
    """Where it would run."""
    remarks: list[str]
    """To be shown first."""
    need: "MemoryNeed | None" = None
    """Memory that it needs; None of `task=kernels`."""
    traffic: "Traffic | None" = None
    """Bytes of its decode steps; None as above."""
    roof: "Roof | None" = None
    """Read roof of the device; None where none was measured yet."""

    def line(self) -> dict[str, Any]:
        """For programs."""
        names = {group: getattr(self.config, group).name for group in ("model", "quant", "engine", "workload", "task")}
        least, rate = None, None
        if self.traffic is not None:
            least = sum(self.traffic.needed()) / len(self.traffic.kv_len)
        if least is not None and self.roof is not None:
            rate = self.config.workload.batch_size * self.roof.gb_per_s * 1e9 / least
        return {
            **names,
            "device": self.device.name,
            "dtype": self.device.dtype_name,
            "needs_bytes": None if self.need is None else self.need.total,
            "free_bytes": self.device.free_memory(),
            "step_bytes": least,
            "read_roof_gb_per_s": None if self.roof is None else self.roof.gb_per_s,
            "max_tokens_per_s": rate,
        }


def forecast(config: Config) -> Forecast:
    """Checks a run as it is checked before it is measured.

    Raises:
        UserError: it cannot be done here.
    """
    from gptbench.build import memory_need_of
    from gptbench.config.targets import instantiate
    from gptbench.device.group import DeviceGroup
    from gptbench.engine import Runner
    from gptbench.execute.preparation import plan, plan_reference, with_engine
    from gptbench.measure.environment import environment
    from gptbench.measure.roof import Roofs
    from gptbench.measure.traffic import traffic
    from gptbench.text.prompt import make_tokenizer

    devices = DeviceGroup.of(config.device)
    device = devices.local
    remarks: list[str] = []
    if not config.task.RUNS_ENGINE:
        task = instantiate(config.task, config, device)
        left_out = [] if task.left_out is None else [f"Without the kernels of {config.model.name}: {task.left_out}"]
        return Forecast(config, device, [*left_out, f"{len(task.cases)} kernels on {device.name}"])
    config, _ = with_engine(config, devices, remarks.append)
    task = instantiate(config.task, config, make_tokenizer(config.model))
    model = plan(config, devices)
    if task.needs_reference:
        plan_reference(config, 0)
    need = memory_need_of(config, model)
    moved = traffic(Runner(config, model, devices), config.workload.new_tokens)
    roof = Roofs(devices, environment(devices, config.commit), Path(config.outputs) / "roofs").highest()
    return Forecast(config, device, remarks, need, moved, roof)
