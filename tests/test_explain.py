"""Explanation of a step's time: parts add up, and advice follows from the record."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from results import made_result

from gptbench.base.errors import UserError
from gptbench.commands.explain import explain_command
from gptbench.compare.advice import Advice
from gptbench.compare.explain import Explanation, explain
from gptbench.compare.step import part_of
from gptbench.schema import Failure, Result
from gptbench.schema.breakdown import Breakdown, Launch
from gptbench.schema.machine import DeviceState, Probe

FUSED = {"_target_": "gptbench.engine.fused.Fused", "name": "fused", "pdl": True, "autotune": False}
EAGER = {"_target_": "gptbench.engine.Eager", "name": "eager"}
ROOF = 1e12
"""Bytes/s, of all that follows."""
WEIGHTS = 6 * 10**9
"""Which take 6 ms."""


def run(
    launches: list[tuple[str, float, int | None]] | None = None,
    *,
    step_s: float = 10e-3,
    gap_s: float = 0.0,
    factor: float = 1.0,
    engine: dict[str, Any] | None = None,
    quant: str = "none",
    weights: int = WEIGHTS,
    kv: int = 10**6,
    padding: int = 0,
    dtype: str = "bfloat16",
    on_cpu: bool = False,
    state: DeviceState | None = None,
    **groups: dict[str, Any],
) -> Result:
    """A run whose steps all take `step_s`.

    Args:
        launches: name, seconds and bytes of each kernel of the profiled step, one after the other; None is none at all.
        gap_s: seconds after the last of them.
        factor: how much longer the profiled step took.
        kv: bytes of a cached position.
        padding: positions that are read and hold no token.
    """
    result = made_result(compiles=(0, 0), quant=quant)
    samples = [
        replace(one, step_s=[step_s] * 4, ttft_s=0.05, call_s=0.05 + 4 * step_s + 1e-4, state=state)
        for one in result.samples
    ]
    config = result.config | {"task": {"name": "speed", "breakdown": launches is not None}}
    changes = {"engine": engine or FUSED, **groups}
    config |= {name: (config.get(name, {}) if name != "engine" else {}) | values for name, values in changes.items()}
    moved = result.traffic
    read = [count + padding for count in moved.kv_len]
    here = replace(result.environment, device=result.environment.cpu) if on_cpu else result.environment
    breakdown = None
    if launches is not None:
        found, start = [], 0.0
        for name, seconds, count in launches:
            found.append(Launch(name, start, seconds * factor, None, count))
            start += seconds * factor
        breakdown = Breakdown(position=5, step_s=start + gap_s * factor, launches=found)
    return replace(
        result,
        samples=samples,
        config=config,
        environment=here,
        dtype=dtype,
        breakdown=breakdown,
        roof=replace(result.roof, gb_per_s=ROOF / 1e9),
        traffic=replace(moved, weights=weights, kv_per_position=kv, positions_read=read),
    )


KERNELS = [
    ("embed_kernel", 0.1e-3, 8192),
    ("linear_6144x4096", 3e-3, 2 * 10**9),
    ("attend_kernel", 0.5e-3, 10**6),
    ("add_linear_4096x4096", 2e-3, 10**9),
    ("swiglu_22016x4096_experts", 3e-3, 2 * 10**9),
    ("linear_32000x4096", 0.8e-3, 5 * 10**8),
    ("maxima_kernel", 0.1e-3, 128000),
    ("sample_kernel", 0.4e-3, None),
]
"""A fused step of 9.9 ms."""


def parts(told: Explanation) -> dict[str, float]:
    assert sum(part.seconds for part in told.parts) == pytest.approx(told.step_s)
    return {part.name: part.seconds for part in told.parts}


def changes(told: Explanation) -> dict[str, Advice]:
    return {one.change: one for one in told.advice}


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_the_parts_of_a_fused_step_add_up_to_the_samples_median(factor: float) -> None:
    told = explain(run(KERNELS, gap_s=0.1e-3, factor=factor))
    assert parts(told) == pytest.approx(
        {"bytes": 5.5e-3, "boundaries": 3.3e-3 + 0.1e-3, "attention": 0.5e-3, "sampling": 0.5e-3, "other": 0.1e-3}
    )
    assert told.profiled_s == pytest.approx(10e-3 * factor)
    assert f"scaled by {1 / factor:.3f}" in told.notes[0]
    whats = {part.name: part.description for part in told.parts}
    assert whats["bytes"].startswith("5.5 GB of weights read by their kernels")
    assert "100 µs of it are launch gaps" in whats["boundaries"]
    assert "the step's 7 MB of keys and values take 7 µs" in whats["attention"], "of position 5: six read, one written"


def test_the_limit() -> None:
    told = explain(run(KERNELS))
    needed = WEIGHTS + 10**6 * (4 + 5 + 6 + 7) / 4
    assert told.least_s == pytest.approx(needed / ROOF)
    assert told.most_tokens_per_s == pytest.approx(ROOF / needed)
    assert told.tokens_per_s == pytest.approx(100)
    assert told.mbu == pytest.approx(told.tokens_per_s / told.most_tokens_per_s)
    assert "6.005 GB" in told.limit and "its engine moves" not in told.limit and "MBU 60.1%" in told.limit


def test_what_binds_is_said_as_far_as_the_record_shows_it() -> None:
    whole = run(KERNELS, gap_s=0.1e-3)
    assert explain(whole).binding == (
        "60.1% of the memory limit (100 of at most 166.5 tokens/s): most of a step is memory bandwidth (55%), then "
        "kernel ramp-up/drain, launch gaps and arithmetic of the kernels that read weights (34%)"
    )
    launches: list[tuple[str, float, int | None]] = [("nvjet_tst_64x8", 2e-3, None), ("vectorized", 1e-3, None)]
    hosts = explain(run(launches, gap_s=7e-3, step_s=10e-3, engine=EAGER, weights=10**9))
    assert "most of a step is host overhead: gaps in which nothing runs (70%), then " in hosts.binding
    more = "task.breakdown=true shows what takes the time"
    assert explain(run()).binding.endswith(f"most of a step is memory bandwidth (60%); for the rest, {more}")
    slow, short = explain(run(weights=10**8, kv=1)), explain(run(weights=10**6, step_s=100e-6, kv=1))
    assert slow.binding.endswith(f"not bound by memory bandwidth (100 µs of a step of 10 ms); {more}")
    assert short.binding.endswith(
        f"the step is too short to be bound by memory bandwidth (1 µs of a step of 100 µs); {more}"
    )
    near = run(weights=int(9.5 * 10**9))
    assert "bound by memory bandwidth: hardly anything but fewer bytes" in explain(near).binding
    busy = replace(near, probes=[Probe("after", 500.0, 0, [], "")])
    assert "busy with something else" in explain(busy).binding and "bound by" not in explain(busy).binding
    assert "faster than the read roof" in explain(run(weights=2 * 10**10)).binding


def test_gaps_between_kernels_that_the_host_launches_are_the_hosts() -> None:
    names = [
        "nvjet_tst_64x8",
        "triton_per_fused_bmm_0",
        "void at::native::radixSortKVInPlace",
        "vectorized_elementwise",
    ]
    launches: list[tuple[str, float, int | None]] = [(name, 1.5e-3, None) for name in names]
    launches[0] = (names[0], 7e-3, None)
    told = explain(run(launches, gap_s=2.5e-3, step_s=14e-3, engine=EAGER))
    assert parts(told) == pytest.approx(
        {"bytes": 6e-3, "boundaries": 1e-3, "attention": 1.5e-3, "sampling": 1.5e-3, "other": 1.5e-3, "host": 2.5e-3}
    )
    fused = changes(told)["engine=fused"]
    assert "2500 µs of gaps" in fused.why and "samples without sorting (sampling is 10.7% of the step)" in fused.why
    assert fused.tokens_per_s == pytest.approx(1 / 10e-3), "without gaps and others"


def test_faster_than_the_roof_leaves_no_boundaries() -> None:
    told = explain(run([("linear_4096x4096", 9e-3, 10**10)], step_s=9e-3))
    assert parts(told)["bytes"] == pytest.approx(9e-3) and parts(told)["boundaries"] == 0
    assert any("faster than the read roof" in note for note in told.notes)


def test_kernels_that_nobody_knows_are_told_as_others() -> None:
    told = explain(run([("mystery", 6e-3, None), ("riddle", 4e-3, None)]))
    assert parts(told)["other"] == pytest.approx(10e-3)
    assert told.parts[4].description == "2 kernels, mostly mystery 6000 µs, riddle 4000 µs"
    assert any("No kernel was recognised as one that reads weights" in note for note in told.notes)


def test_on_a_cpu_what_follows_the_last_product_draws() -> None:
    names = ["aten::mul", "aten::linear", "aten::matmul", "aten::softmax", "aten::linear", "aten::sort", "aten::mul"]
    launches: list[tuple[str, float, int | None]] = [(name, 1e-3, None) for name in names]
    told = explain(run(launches, gap_s=3e-3, engine=EAGER, on_cpu=True, weights=10**9))
    assert parts(told) == pytest.approx(
        {"bytes": 1e-3, "boundaries": 1e-3, "attention": 2e-3, "sampling": 2e-3, "other": 1e-3, "host": 3e-3}
    )
    assert changes(told)["engine=inductor"].tokens_per_s == pytest.approx(1 / 7e-3)
    told = explain(
        run([("compiled graph abc", 10e-3, None)], on_cpu=True, engine={"_target_": "x", "name": "inductor"})
    )
    assert any("a compiled graph is one operation" in note for note in told.notes)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("swiglu_28672x4096", "matrices"),
        ("linear_128256x2048", "matrices"),
        ("add_linear_4096x14336_experts", "matrices"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "matrices"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrices"),
        ("cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16", "matrices"),
        ("triton_red_fused__to_copy_mm_mul_t_3", "matrices"),
        ("triton_tem_fused_addmm_1", "matrices"),
        ("triton_poi_fused_add_0", "other"),
        ("triton_red_fused_add_mean_mul_pow_rsqrt_0", "other"),
        ("triton_per_fused__softmax_where_7", "attention"),
        ("triton_red_fused__unsafe_view_bmm_5", "attention"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("attend_kernel", "attention"),
        ("triton_per_fused_cumsum_sort_9", "sampling"),
        ("triton_red_fused__softmax_arange_div_ge_masked_fill_sub_where_4", "sampling"),
        ("triton_red_fused_linear_mul_5", "matrices"),
        ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel", "sampling"),
        ("void at::native::tensor_kernel_scan_innermost_dim", "sampling"),
        ("sample_kernel", "sampling"),
        ("route_kernel", "other"),
        ("Memcpy DtoD (Device -> Device)", "other"),
    ],
)
def test_names(name: str, part: str) -> None:
    assert part_of(Launch(name, 0.0, 1.0)) == part
    assert part_of(Launch(name, 0.0, 1.0, part="attention")) == "attention"
    assert part_of(Launch(name, 0.0, 1.0, part="of a plugin's")) == "other"


def test_without_a_breakdown_it_tells_what_bytes_tell_and_how_to_see_more() -> None:
    result = run()
    result = replace(result, command=[*result.command, "task.breakdown=false"])
    told = explain(result)
    assert told.parts == [] and told.profiled_s is None
    assert told.more == "python -m gptbench model=stories15m quant=none task.breakdown=true"
    assert told.notes[0].startswith("At the read roof, the weights take 6000 µs, and keys and values 5.5 µs")
    assert not any(one.at_most and "batch" not in one.change for one in told.advice), "no bound is known"
    assert explain(run(KERNELS)).more is None


# What would help


def test_int8_where_weights_take_most_of_the_step() -> None:
    told = explain(run(KERNELS))
    int8 = changes(told)["quant=int8"]
    assert int8.tokens_per_s == pytest.approx(1 / 7e-3), "3 GB less, 3 ms at the roof"
    assert not int8.at_most and int8.why.startswith("saves reading 3 GB of weights")
    for other in (
        run(KERNELS, quant="int8"),
        run(KERNELS, weights=10**9),
        run(KERNELS, on_cpu=True),
        run(KERNELS, model={"ffn_dim": 1000}),
        run(KERNELS, engine={"_target_": "gptbench.engine.HuggingFace", "name": "hf"}),
    ):
        assert "quant=int8" not in changes(explain(other))


def test_smaller_types_where_weights_are_float32() -> None:
    told = changes(explain(run(KERNELS, dtype="float32")))
    assert told["device.dtype=bfloat16"].tokens_per_s == pytest.approx(1 / (7e-3 - 3.25e-6), rel=1e-3)
    assert told["quant=int8"].tokens_per_s == pytest.approx(1 / 5.5e-3)
    assert "device.dtype=bfloat16" not in changes(explain(run(KERNELS)))


INDUCTOR = {"_target_": "gptbench.engine.Inductor", "name": "inductor", "cuda_graph": "step"}


def test_the_fused_engine_where_the_cache_is_padded() -> None:
    fused = changes(explain(run(KERNELS, engine=INDUCTOR, padding=1000)))["engine=fused"]
    assert "1 GB of padding per step, 1000 µs at the read roof" in fused.why
    told = explain(run(KERNELS, engine=INDUCTOR, padding=1000))
    assert "needs 6.005 GB (its engine moves 7.006 GB: padding" in told.limit
    assert told.mbu == pytest.approx(0.60055), "padding is of no use"
    assert fused.tokens_per_s == pytest.approx(1 / 9e-3)
    assert changes(explain(run(engine=INDUCTOR)))["engine=fused"].tokens_per_s is None, "nothing to be told of it"
    for other in (
        run(KERNELS, engine=INDUCTOR, dtype="float16"),
        run(KERNELS, engine=INDUCTOR, workload={"batch_size": 16}),
        run(KERNELS, engine=INDUCTOR, on_cpu=True),
        run(KERNELS),
    ):
        assert "engine=fused" not in changes(explain(other))


def test_settings_of_the_engine() -> None:
    assert "engine.cuda_graph=step" not in changes(explain(run(KERNELS, engine=INDUCTOR)))
    plain = run(KERNELS, gap_s=0.1e-3, engine=INDUCTOR | {"cuda_graph": "none"})
    graph = changes(explain(plain))["engine.cuda_graph=step"]
    assert graph.at_most and graph.tokens_per_s == pytest.approx(1 / 9.9e-3)
    told = changes(explain(run(KERNELS, engine=FUSED | {"pdl": False})))
    assert told["engine.pdl=true"].at_most and told["engine.autotune=true"].at_most
    assert told["engine.autotune=true"].tokens_per_s == pytest.approx(1 / (10e-3 - (8.8e-3 * 10 / 9.9 - 5.5e-3)))
    tuned = changes(explain(run(KERNELS, engine=FUSED | {"autotune": True})))
    assert not {"engine.autotune=true", "engine.pdl=true"} & set(tuned)


def test_drawing_that_takes_long() -> None:
    greedy = changes(explain(run(KERNELS)))["sampling=greedy"]
    assert greedy.at_most and "5.1%" in greedy.why
    assert "sampling=greedy" not in changes(explain(run(KERNELS, sampling={"temperature": 0})))
    assert "sampling=greedy" not in changes(explain(run(KERNELS[:-1])))


def test_experts_that_an_earlier_version_did_not_count_are_told() -> None:
    told = "not counted"
    old = run(KERNELS, model={"n_experts": 8}, workload={"batch_size": 4})
    assert any(told in note for note in explain(old).notes)
    counted = replace(old, samples=[replace(one, experts_chosen=9) for one in old.samples])
    alone = run(KERNELS, model={"n_experts": 8})
    assert not any(told in note for other in (counted, alone, run(KERNELS)) for note in explain(other).notes)


def test_more_at_once_and_less_context() -> None:
    batch = changes(explain(run(KERNELS)))["workload.batch_size=2"]
    assert batch.at_most and batch.tokens_per_s == pytest.approx(2 / (10e-3 + 5.5e-6), rel=1e-3)
    for other in (
        run(KERNELS, workload={"batch_size": 8}),
        run(KERNELS, model={"n_experts": 8}),
        run(KERNELS, on_cpu=True),
    ):
        assert not [one for one in explain(other).advice if "batch" in one.change]
    long = changes(explain(run(KERNELS, kv=5 * 10**8)))
    assert "keys and values are 31% of the bytes" in long["a context half as long"].why
    assert "a context half as long" not in changes(explain(run(KERNELS)))


def test_no_estimate_is_beyond_the_roof() -> None:
    told = explain(run([("linear_4096x4096", 1e-3, 10**6), ("mystery", 9e-3, None)], gap_s=0.0))
    for one in told.advice:
        if one.tokens_per_s is not None and one.change in ("engine.autotune=true", "sampling=greedy"):
            assert one.tokens_per_s <= told.most_tokens_per_s
    gaps = explain(run([("gemm", 1e-3, None)], gap_s=9e-3, engine=EAGER))
    assert changes(gaps)["engine=fused"].tokens_per_s == pytest.approx(gaps.most_tokens_per_s)


def test_what_gains_most_comes_first() -> None:
    *own, other = explain(run(KERNELS, engine=INDUCTOR)).advice
    gains = [one.tokens_per_s for one in own]
    assert gains == sorted(gains, key=lambda gain: -(gain or 0.0)) and gains[-1] is None
    assert other.change == "workload.batch_size=2", "a faster answer before more answers"


def test_near_the_roof_only_fewer_bytes_help() -> None:
    told = explain(run([("linear_4096x4096", 6.2e-3, 6 * 10**9)], step_s=6.2e-3, engine=INDUCTOR))
    assert told.mbu > 0.92 and "hardly anything but fewer bytes" in told.notes[-1]
    assert set(changes(told)) == {"quant=int8", "workload.batch_size=2"}


def test_the_devices_state_and_the_hosts_time_are_told() -> None:
    state = DeviceState(at_s=[0.0, 0.1], clock_mhz=[1500.0, 1980.0], throttled=["power cap"], throttled_s=0.1)
    notes = explain(run(KERNELS, state=state)).notes
    assert any(
        "2 of 2 samples were throttled: power cap, 0.2 s by the device's counters. It may be faster" in note
        for note in notes
    )
    assert any("from 1500 to 1980 MHz" in note for note in notes)
    assert not any("beyond prefill" in note for note in notes)
    result = run(KERNELS)
    late = replace(result, samples=[replace(one, call_s=one.call_s + 0.01) for one in result.samples])
    told = explain(late)
    assert told.host_overhead_s == pytest.approx(0.0101)
    assert any("10.1 ms of host time beyond prefill and steps" in note for note in told.notes)


# The command


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(KERNELS[1:]).save(tmp_path / "0")
    path = replace(run(KERNELS, gap_s=0.1e-3), started="2026-11-23T12:00:00+00:00").save(tmp_path / "1")
    assert explain_command([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert sum(told["parts"].values()) == pytest.approx(told["step_s"])
    assert told["result"] == str(path) and "the latest of 2 runs" in printed.err
    assert [one["change"] for one in told["advice"]][-1] == "workload.batch_size=2"
    assert "quant=int8: about 142.9 tokens/s (+42.9%)" in printed.err and "boundaries" in printed.err
    run().save(tmp_path / "2")
    assert explain_command([str(tmp_path / "2")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["parts"] is None
    assert "To see more: python -m gptbench model=stories15m quant=none task.breakdown=true" in printed.err


def test_what_cannot_be_explained_is_refused(tmp_path: Path) -> None:
    path = made_result(finite=False).save(tmp_path)
    with pytest.raises(UserError, match="not a valid measurement: logits"):
        explain_command([str(path)])
    base = made_result()
    failure = Failure(
        started=base.started,
        command=base.command,
        sweep=None,
        config=base.config,
        cause="UserError",
        reason="no",
        seconds=1.0,
        commit=None,
    ).save(tmp_path / "failed")
    with pytest.raises(UserError, match="expected a run of a model"):
        explain_command([str(failure)])


INDUCTOR = {"_target_": "gptbench.engine.Inductor", "name": "inductor", "cuda_graph": "step"}
ON_HOPPER = [
    # As they are called in a step of Llama-3.2-1B on an H100, torch 2.11.
    ("triton_red_fused__to_copy_add_inductor_force_stride_order_mean_mul_pow_rsqrt_0", 0.1e-3, "other"),
    ("triton_red_fused__to_copy_mul_sum_unsqueeze_1", 2e-3, "matrices"),
    ("triton_poi_fused__to_copy_add_cat_mul_neg_slice_split_with_sizes_unsqueeze_view_3", 0.1e-3, "other"),
    ("nvjet_sm90_tst_64x8_64x16_1x1_h_bz_NNT", 0.2e-3, "attention"),
    ("triton_red_fused__softmax__to_copy_arange_exp_le_mul_prepare_softmax_online_scalar_tensor_4", 1e-3, "attention"),
    ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", 0.2e-3, "attention"),
    ("triton_red_fused__to_copy_mul_sum_transpose_unsqueeze_view_6", 1e-3, "matrices"),
    ("triton_red_fused__to_copy_add_mul_sum_unsqueeze_10", 3e-3, "matrices"),
    ("triton_red_fused__to_copy_copy__mul_sum_unsqueeze_1", 1e-3, "matrices"),
    ("void at_cuda_detail::cub::detail::radix_sort::DeviceRadixSortOnesweepKernel<...>", 0.3e-3, "sampling"),
    ("triton_spl_fused_cumsum_8", 0.1e-3, "sampling"),
]


def test_inductors_kernels_on_a_gpu_are_told_apart() -> None:
    told = explain(run([(name, seconds, None) for name, seconds, _ in ON_HOPPER], engine=INDUCTOR, step_s=9e-3))
    seconds = {part.name: part.seconds for part in told.parts}
    for part in ("attention", "sampling", "other"):
        assert seconds[part] == pytest.approx(sum(each for _, each, of in ON_HOPPER if of == part))
    assert seconds["bytes"] + seconds["boundaries"] == pytest.approx(7e-3)
    assert seconds["bytes"] == pytest.approx(6e-3)


def test_a_librarys_products_are_of_weights_where_none_is_generated() -> None:
    assert part_of(Launch("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", 0.0, 1.0)) == "matrices"
    launches = [
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_TNT", 8e-3, None),
        ("cudnn_generated_sdpa_flash_fprop", 2e-3, None),
    ]
    seconds = {part.name: part.seconds for part in explain(run(launches, engine=EAGER)).parts}
    assert seconds["bytes"] + seconds["boundaries"] == pytest.approx(8e-3)
    assert seconds["attention"] == pytest.approx(2e-3)
