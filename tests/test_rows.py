"""Runs as rows of PyTorch's gpt_fast benchmark: its names, units and definitions, as CSV and as records."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results import made_result

from gptbench.base.errors import UserError
from gptbench.commands.rows import rows_command
from gptbench.compare.baseline import Baseline, read_baseline
from gptbench.compare.rows import COLUMNS, Experiment, experiments
from gptbench.compare.select import SelectedRecord
from gptbench.config import shipped
from gptbench.schema import KernelResult, Measured, Result
from gptbench.schema.kernels import KernelTimes, Timing

SIZES = (1024, 4096, 8192, 16384)
SEED = Baseline(read_baseline("a100_40gb"))


def of(model: str, quant: str) -> Result:
    """A run of a model that the benchmark has, under the seed's workload."""
    result = made_result(quant=quant)
    workload = dict(shipped("workload", "gpt_fast"))
    config = result.config | {"model": result.config["model"] | shipped("model", model), "workload": workload}
    first = replace(result.compilations[0], first_generation_s=2.0)
    return replace(result, config=config, prompt=workload["prompt"], compilations=[first, *result.compilations[1:]])


def kernel_run(sizes: tuple[int, ...] = SIZES) -> KernelResult:
    """Every micro-benchmark at each size, in 2 µs by Inductor and in 1 µs by our kernel."""
    base = made_result()
    kernels = []
    for name, dtypes in (
        ("gemv", ("int8", "bfloat16")),
        ("layer_norm", ("bfloat16",)),
        ("mlp_layer_norm_gelu", ("bfloat16",)),
        ("route", ("bfloat16",)),
    ):
        for dtype in dtypes:
            for size in sizes:
                timings = {"kernel": Timing([1e-6], 0.0), "inductor": Timing([3e-6, 1e-6, 2e-6], 0.0)}
                shape = {"B": 1, "D": size}
                kernels.append(KernelTimes(name, shape, dtype, f"{name}/D{size}/{dtype}", 10**6, 10**6, 4, timings))
    return KernelResult(
        started=base.started,
        command=["python", "-m", "gptbench", "task=kernels"],
        sweep=None,
        config=base.config | {"task": {"name": "kernels"}},
        environment=base.environment,
        dtype=base.dtype,
        roof=base.roof,
        wall_s=12.0,
        peak_flops=1e15,
        kernels=kernels,
    )


def rows(*records: Measured, by: str = "inductor") -> dict[tuple[str, str, str], Experiment]:
    found = experiments([SelectedRecord(Path("r.json"), record) for record in records], SEED, by)
    return {(row.name, row.metric, row.dtype): row for row in found}


def test_the_seeds_models_have_their_names_targets_and_definitions() -> None:
    found = rows(of("llama2_7b", "none"), of("llama2_7b", "int8"), of("mixtral_16l", "int8"))
    assert {key: row.target for key, row in found.items()} == {
        ("Llama-2-7b-chat-hf", "token_per_sec", "bfloat16"): 94,
        ("Llama-2-7b-chat-hf", "memory_bandwidth(GB/s)", "bfloat16"): 1253,
        ("Llama-2-7b-chat-hf", "compilation_time(s)", "bfloat16"): 162,
        ("Llama-2-7b-chat-hf", "token_per_sec", "int8"): 144,
        ("Llama-2-7b-chat-hf", "memory_bandwidth(GB/s)", "int8"): 957,
        ("Llama-2-7b-chat-hf", "compilation_time(s)", "int8"): 172,
        ("Mixtral-8x7B-v0.1", "token_per_sec", "int8"): 175,
        ("Mixtral-8x7B-v0.1", "memory_bandwidth(GB/s)", "int8"): 1130,
        ("Mixtral-8x7B-v0.1", "compilation_time(s)", "int8"): 162,
    }
    speed = found["Llama-2-7b-chat-hf", "token_per_sec", "bfloat16"]
    calls = [sample.call_s for sample in of("llama2_7b", "none").samples if not sample.compiles]
    assert speed.values == pytest.approx([5 / call for call in calls]), "of the samples that count"
    assert speed.actual == pytest.approx(sum(5 / call for call in calls) / 2)
    assert found["Llama-2-7b-chat-hf", "compilation_time(s)", "int8"].values == [22.0], "with the first generation"
    assert (speed.device, speed.arch, speed.is_model) == ("cuda", "Processor X", True)


def test_other_models_have_rows_without_targets() -> None:
    small = of("llama2_7b", "none")
    small = replace(small, config=small.config | {"model": small.config["model"] | {"n_layers": 2}})
    for record, name in ((made_result(), "stories15m"), (small, "llama2_7b")):
        found = rows(record)
        assert {key[0] for key in found} == {name}
        assert len(found) == 3 and all(row.target is None for row in found.values())


def test_a_run_without_a_cold_compilation_has_no_row_of_it() -> None:
    result = made_result()
    assert len(rows(replace(result, compilations=result.compilations[1:]))) == 2


def test_micro_benchmarks_are_means_over_the_seeds_sizes() -> None:
    found = rows(kernel_run())
    assert {key: row.target for key, row in found.items()} == {
        ("gemv", "memory_bandwidth(GB/s)", "int8"): 870,
        ("gemv", "memory_bandwidth(GB/s)", "bfloat16"): 990,
        ("layer_norm", "memory_bandwidth(GB/s)", "bfloat16"): 950,
        ("mlp_layer_norm_gelu", "flops_utilization", "bfloat16"): 0.8,
    }
    gemv = found["gemv", "memory_bandwidth(GB/s)", "int8"]
    assert gemv.actual == pytest.approx(500) and not gemv.is_model
    assert rows(kernel_run(), by="kernel")["gemv", "memory_bandwidth(GB/s)", "int8"].actual == pytest.approx(1000)
    flops = found["mlp_layer_norm_gelu", "flops_utilization", "bfloat16"]
    assert flops.actual == pytest.approx(2 * 1e6 / 1e9 / 312), "the seed's own figure"
    assert all(row.target is None for row in rows(kernel_run((1024, 4096))).values()), "of other sizes"


def test_of_a_cpu_the_architecture_is_told() -> None:
    result = made_result()
    platform = "Linux-6.1.0-aarch64-with-glibc2.36"
    here = replace(result.environment, device="Processor Y", driver=None, power_limit_w=None, platform=platform)
    row = next(iter(rows(replace(result, environment=here)).values()))
    assert (row.device, row.arch) == ("cpu", "aarch64")
    assert not {"driver", "power_limit_w"} & set(row.origin)


def test_what_does_not_count_or_measured_something_else_is_refused() -> None:
    with pytest.raises(UserError, match=r"r\.json: not a valid measurement: logits"):
        rows(made_result(finite=False))
    with pytest.raises(UserError, match=r"expected a run of a model, or gemv, .* by library"):
        rows(kernel_run(), by="library")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = of("llama2_7b", "none").save(tmp_path / "model")
    kernels = kernel_run().save(tmp_path / "kernels")
    assert rows_command([str(model), str(kernels)]) == 0
    printed = capsys.readouterr().out
    head, first, *others = csv.reader(io.StringIO(printed))
    assert tuple(head) == COLUMNS
    expected = ["Llama-2-7b-chat-hf", "token_per_sec", "94"]
    assert first[:3] == expected and first[4:] == ["bfloat16", "cuda", "Processor X", "True"]
    assert first[3] == f"{float(first[3]):.2f}"
    assert len(others) == 2 + 4 and others[-1][:3] == ["mlp_layer_norm_gelu", "flops_utilization", "0.8"]
    table, records = tmp_path / "new" / "rows.csv", tmp_path / "new" / "rows.json"
    assert rows_command([str(tmp_path), "--csv", str(table), "--json", str(records)]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 7, "csv": str(table), "json": str(records)}
    assert sorted(table.read_text().splitlines()) == sorted(printed.splitlines())
    written: list[dict[str, Any]] = json.loads(records.read_text())
    record = next(one for one in written if one["metric"]["name"] == "token_per_sec")
    assert record["model"] == {"name": "Llama-2-7b-chat-hf", "type": "OSS model", "origins": ["pytorch"]}
    assert record["benchmark"]["name"] == "PyTorch gpt-fast benchmark" and record["benchmark"]["mode"] == "inference"
    assert record["benchmark"]["dtype"] == "bfloat16"
    info = record["benchmark"]["extra_info"]
    assert (info["is_model"], info["device"], info["arch"]) == (True, "cuda", "Processor X")
    assert (info["commit"], info["driver"], info["power_limit_w"]) == ("1234567", "570.1", "700")
    assert info["command"] == "python -m gptbench model=stories15m quant=none"
    assert record["metric"]["target_value"] == 94 and len(record["metric"]["benchmark_values"]) == 2
    assert {one["model"]["type"] for one in written} == {"OSS model", "micro-benchmark"}
    empty = replace(of("llama2_7b", "none"), samples=[]).save(tmp_path / "empty")
    assert rows_command([str(empty), str(model), str(kernels)]) == 0
    told = capsys.readouterr()
    assert told.out == printed
    assert "".join(told.err.split()) == "".join(
        f"left out: {empty}: not a valid measurement: it has no samples".split()
    )
    with pytest.raises(UserError, match="none of these records is a valid measurement"):
        rows_command([str(empty)])


def test_another_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "_target_: gptbench.compare.Baseline\nname: mine\ndevice: X\n"
        "targets: {llama2_7b/bfloat16: {gptfast_tokens_per_s: 7.0}}\n"
    )
    record = of("llama2_7b", "none").save(tmp_path / "model")
    assert rows_command([str(record), "--baseline", str(file)]) == 0
    assert [line.split(",")[2] for line in capsys.readouterr().out.splitlines()] == ["target", "7", "", ""]
    with pytest.raises(UserError, match="no such file"):
        rows_command([str(record), "--baseline", "h900"])
