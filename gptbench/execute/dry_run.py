"""`--dry-run`: what a run would measure, what it needs, and the limit, without measuring anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gptbench.base.errors import counted
from gptbench.config import Config
from gptbench.config.run_folder import forget
from gptbench.execute.job import RaisedError, read_job

if TYPE_CHECKING:
    from gptbench.build import MemoryNeed
    from gptbench.device import Device
    from gptbench.schema.machine import Roof
    from gptbench.schema.sample import Traffic


def dry_run(composed: DictConfig) -> None:
    """Forecast a run; Hydra calls this in place of `gptbench.execute.job.job`. For a sweep, `gptbench.sweep.dry_run` is
    used instead.

    Raises:
        RaisedError: the run would be refused.
    """
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = read_job(composed, hydra_config, folder).config
        from gptbench.present.console import console, write_line
        from gptbench.present.formats import TEXT, Column, Table, write
        from gptbench.present.terminal import Terminal

        observer = Terminal(config.quiet)
        forecasted = forecast(config)
        for remark in forecasted.remarks:
            observer.remark(remark)
        if forecasted.need is not None and forecasted.traffic is not None:
            observer.planned(forecasted.config, forecasted.device, forecasted.need)
            observer.limit(forecasted.traffic, forecasted.roof, forecasted.config)
        console.print("dry run: nothing was measured", style="dim")
        line = forecasted.line()
        if console.format == TEXT:
            write_line({"dry_run": True, **line})
        else:
            write([Table("run", [Column(name, name) for name in line], [list(line.values())])], console.format)
    except Exception as error:
        raise RaisedError(error) from error
    finally:
        forget(folder, hydra_config.output_subdir)


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before anything takes time."""

    config: Config
    """Configuration with the engine that `engine=auto` selects here."""
    device: "Device"
    """Device that it would run on."""
    remarks: list[str]
    """Remarks to show first."""
    need: "MemoryNeed | None" = None
    """Memory that it needs; None for `task=kernels`."""
    traffic: "Traffic | None" = None
    """Bytes of its decode steps; None for `task=kernels`."""
    roof: "Roof | None" = None
    """Read roof of the device; None if none was measured yet."""

    def line(self) -> dict[str, Any]:
        """Return the fields of the JSON line."""
        names = {group: getattr(self.config, group).name for group in ("model", "quant", "engine", "workload", "task")}
        names["quant"] = self.config.quant.full_name
        step_bytes, rate = None, None
        if self.traffic is not None:
            step_bytes = sum(self.traffic.needed()) / len(self.traffic.kv_len)
        if step_bytes is not None and self.roof is not None:
            rate = self.config.workload.batch_size * self.roof.gb_per_s * 1e9 / step_bytes
        return {
            **names,
            "device": self.device.name,
            "dtype": self.device.dtype_name,
            "needs_bytes": None if self.need is None else self.need.total,
            "free_bytes": self.device.free_memory(),
            "step_bytes": step_bytes,
            "read_roof_gb_per_s": None if self.roof is None else self.roof.gb_per_s,
            "max_tokens_per_s": rate,
        }


def forecast(config: Config) -> Forecast:
    """Check a run as before measuring it, and return its forecast.

    Raises:
        UserError: this machine cannot run it.
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
        remarks += [] if task.remark is None else [task.remark]
        return Forecast(
            config, device, [*remarks, f"{counted(task.parts, 'part')} of task={config.task.name} on {device.name}"]
        )
    config, _ = with_engine(config, devices, remarks.append)
    task = instantiate(config.task, config, make_tokenizer(config.model))
    model = plan(config, devices)
    if task.needs_reference:
        plan_reference(config, 0)
    need = memory_need_of(config, model)
    moved = traffic(Runner(config, model, devices), config.workload.new_tokens)
    roof = Roofs(devices, environment(devices, config.commit), Path(config.outputs) / "roofs").highest()
    return Forecast(config, device, remarks, need, moved, roof)
