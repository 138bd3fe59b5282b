"""Synthetic results that look as if they had been measured."""

import math
from dataclasses import replace
from typing import Any

from gptbench.schema.breakdown import Breakdown, Launch
from gptbench.schema.compilation import Compilation
from gptbench.schema.energy import Energy, Spent
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.kernels import KernelResult, KernelTimes, Timing
from gptbench.schema.machine import DeviceState, Environment, Roof
from gptbench.schema.quality import Predictions
from gptbench.schema.result import CheckpointInfo, Result
from gptbench.schema.sample import Sample, Traffic, WarmUp

PROMPT, NEW_TOKENS = [1, 15043, 29892], 5
STEPS = NEW_TOKENS - 1


def made_result(
    *,
    step_s: float = 0.01,
    quant: str = "none",
    compiles: tuple[int, ...] = (0, 1, 0),
    finite: bool = True,
    device: str = "Processor X",
    commit: str = "1234567",
    started: str = "2026-11-22T12:00:00+00:00",
    sweep: str | None = None,
    outputs: str = "outputs",
    tracking: dict[str, Any] | None = None,
    model: str = "stories15m",
    engine: str = "inductor",
    top_k: int | None = 200,
    temperature: float = 0.8,
    perplexity: float | None = None,
) -> Result:
    """Return a run of stories15m in bfloat16 or int8, compiled by Inductor, on one GPU.

    Args:
        step_s: seconds of the first decode step of the first sample; each step takes 1% longer than the one before,
            each sample 10%.
        compiles: number of compilations during each sample; by default there are three samples, of which the second is
            invalid.
        finite: whether the last sample's values are finite.
        tracking: fields of `MLflowConfig` that differ from its defaults; None for no tracking.
        model: name of the model; nothing else depends on it.
        engine: name of the engine; nothing else depends on it.
        perplexity: perplexity of a text of four tokens; None for a run that predicted no text.
    """
    environment = Environment(
        commit=commit,
        device=device,
        cpu="Processor Y",
        cores=2,
        threads=2,
        driver="570.1",
        power_limit_w=700.0,
        cuda="13.0",
        python="3.11.7",
        platform="Linux",
        libraries={"gptbench": "0.1.0", "torch": "2.13.0", "triton": "3.7.0", "mlflow": "3.17.2"},
    )
    samples = []
    for index, count in enumerate(compiles):
        steps = [step_s * (1 + index / 10) * (1 + step / 100) for step in range(STEPS)]
        ttft_s = 0.05 + index / 100
        samples.append(
            Sample(
                ttft_s=ttft_s,
                step_s=steps,
                call_s=ttft_s + sum(steps) + 0.001,
                compiles=count,
                allocations=0,
                peak_memory_bytes=10**8 + index,
                finite=finite or index < len(compiles) - 1,
                tokens=[[7 + index] * NEW_TOKENS],
                text=[f" upon a time {index}"],
            )
        )
    first = len(PROMPT)
    config = made_config(quant, outputs, tracking)
    config["model"]["name"], config["engine"]["name"] = model, engine
    config["sampling"] |= {"top_k": top_k, "temperature": temperature}
    return Result(
        quality=None if perplexity is None else made_predictions(perplexity),
        prompt=PROMPT,
        prompt_text="Once",
        checkpoint=CheckpointInfo("/checkpoints/stories", ["model.safetensors"], 30_000_000, "abc"),
        started=started,
        command=["python", "-m", "gptbench", "model=stories15m", f"quant={quant}"],
        sweep=sweep,
        config=config,
        environment=environment,
        dtype="bfloat16",
        roof=Roof(device, 4000.0, "gptbench.kernels.read_reduce", 2**32, [0.0011, 0.00107], started, environment),
        load_s=0.5,
        prepare_peak_memory_bytes=2 * 10**8,
        memory_need_bytes={"weights": 48_600_000, "kv_cache": 55_296, "workspace": 50_000_000},
        traffic=Traffic(
            weights=30_000_000 if quant == "none" else 15_000_000,
            kv_per_position=6912,
            positions_read=[first + 1 + step for step in range(STEPS)],
            kv_len=[first + 1 + step for step in range(STEPS)],
        ),
        compilations=[
            Compilation(
                cache="cold",
                process="first",
                prepare_s=20.0,
                first_generation_s=0.1,
                compiles=12,
                stage_s={
                    "tracing": 2.0,
                    "lowering": 3.0,
                    "kernels": 9.0,
                    "loading": 0.0,
                    "tuning": 5.0,
                    "capture": 0.25,
                }
                | {"rest": 0.75},
                torch_stage_s={"_compile.compile_inner": 19.0, "backend <fx/graph>": 18.0},
                cache_counts={"fxgraph_cache_hit": 0, "fxgraph_cache_miss": 2, "fxgraph_cache_bypass": 0},
            ),
            Compilation(cache="warm", process="second", prepare_s=3.0, stage_s={"tracing": 1.0, "loading": 2.0}),
        ],
        warm_ups=[WarmUp(0.12, 0)],
        samples=samples,
    )


def made_predictions(perplexity: float) -> Predictions:
    """Return predictions of a text of four tokens."""
    return Predictions(
        "text.txt", "abc", 16, [1, 4], nll=[math.log(perplexity)] * 4, kl=[0.25] * 4, same_top=[True] * 4
    )


def made_breakdown(kernels: int = 3) -> Breakdown:
    """Return a breakdown of a step of 100 µs per kernel. Each kernel runs twice, for 10 µs less in total than the one
    before it; only the bytes that the first one reads are known."""
    launches, start = [], 0.0
    for number in range(2 * kernels):
        kernel = number // 2
        duration = (45 - 5 * kernel) * 1e-6
        launches.append(Launch(f"kernel_{kernel}", start, duration, None, 40_000 if kernel == 0 else None))
        start += duration + 1e-6
    return Breakdown(position=7, step_s=1e-4 * kernels, launches=launches)


def made_energy() -> Energy:
    """Return energy at 60 W when idle, with 0.5 J per token of decode and 0.125 J per token of prefill."""
    return Energy("a counter", 60.0, prefill=Spent(185.0, 2.0, 520), decode=Spent(220.0, 2.0, 200))


def made_state(throttled: bool = False) -> DeviceState:
    """Return three readings of a device under rising load."""
    return DeviceState(
        at_s=[0.0, 0.03, 0.06],
        clock_mhz=[1980.0, 1970.0, 1755.0],
        power_w=[300.0, 500.0, 690.0],
        temperature_c=[40.0, 45.0, 50.0],
        throttled=["power cap"] if throttled else [],
    )


def made_kernels() -> KernelResult:
    """Return timings of two kernels: gptbench's at half and at three quarters of the read roof, a library's at a
    quarter."""
    run = made_result()

    def timed(share: float) -> Timing:
        return Timing(seconds=[4_000_000 / (share * run.roof.gb_per_s * 1e9)] * 3)

    def times(label: str, **timings: Timing) -> KernelTimes:
        name = label.partition("/")[0]
        return KernelTimes(name, {"D": 1024}, "bfloat16", label, 4_000_000, 2_000_000, 3, timings)

    return KernelResult(
        started=run.started,
        command=["python", "-m", "gptbench", "task=kernels"],
        sweep=None,
        config=run.config,
        environment=run.environment,
        dtype="bfloat16",
        roof=run.roof,
        wall_s=3.0,
        peak_flops=None,
        kernels=[
            times("gemv/D1024/bfloat16", kernel=timed(0.75), library=timed(0.25)),
            times("layer_norm/D1024/bfloat16", kernel=timed(0.5)),
        ],
    )


def made_failure() -> Failure:
    """Return the record of a job that was killed."""
    run = made_result(temperature=2.0)
    run.config["device"]["dtype"] = "bfloat16"
    return Failure(
        started=run.started,
        command=run.command,
        sweep=None,
        config=run.config,
        swept=["sampling.temperature=2"],
        cause=Cause.killed.value,
        reason="signal 9 (SIGKILL)",
        seconds=1.5,
    )


def made_config(quant: str, outputs: str, tracking: dict[str, Any] | None) -> dict[str, Any]:
    """Return the resolved configuration of `made_result`, as groups of plain values."""
    mlflow = {
        "_target_": "gptbench.record.MLflowTracker",
        "name": "mlflow",
        "uri": None,
        "experiment": "gptbench",
        "run_name": None,
        "timeout_s": 10.0,
        "retries": 2,
        "figures": False,
    }
    return {
        "model": {
            "_target_": "gptbench.model.Transformer",
            "name": "stories15m",
            "vocab_size": 32000,
            "dim": 288,
            "n_layers": 6,
            "n_heads": 6,
            "n_kv_heads": 6,
            "head_dim": 48,
            "ffn_dim": 768,
            "context": 256,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "norm_eps": 1e-5,
            "tied": True,
            "n_experts": 0,
            "n_active_experts": 0,
        },
        "quant": {
            "_target_": "gptbench.quant.Unquantised" if quant == "none" else f"gptbench.quant.{quant.capitalize()}",
            "name": quant,
        },
        "sampling": {
            "_target_": "gptbench.sampling.Sampler",
            "name": "default",
            "temperature": 0.8,
            "top_k": 200,
            "top_p": None,
        },
        "device": {
            "_target_": "gptbench.device.Device",
            "name": "cuda",
            "kind": "cuda",
            "index": 0,
            "dtype": "auto",
            "threads": None,
            "measure_roof": False,
        },
        "engine": {
            "_target_": "gptbench.engine.Inductor",
            "name": "inductor",
            "fresh_cache": True,
            "measure_warm_start": True,
            "scope": "block",
            "cuda_graph": "step",
            "graph_prefill": True,
            "tuning": "candidates",
            "tune_prefill": False,
        },
        "workload": {
            "_target_": "gptbench.generate.Workload",
            "name": "short",
            "prompt": PROMPT,
            "new_tokens": NEW_TOKENS,
            "samples": 3,
            "batch_size": 1,
            "seed": 1234,
        },
        "tracking": {"_target_": "gptbench.record.NoTracker", "name": "none"}
        if tracking is None
        else mlflow | tracking,
        "baseline": {
            "_target_": "gptbench.compare.Baseline",
            "name": "processor_z",
            "device": "Processor Z",
            "targets": {"stories15m/bfloat16": {"gptfast_tokens_per_s": 100.0}},
        },
        "outputs": outputs,
        "commit": None,
    }


def on_cpu(result: Result, **environment: Any) -> Result:
    """Return a result as if it were from a CPU, with some fields of the environment changed."""
    here = replace(result.environment, driver=None, power_limit_w=None, **environment)
    return replace(result, environment=replace(here, device=here.cpu))
