"""Build: what a run needs is what it then takes, and a run that does not fit is refused before anything is taken."""

import dataclasses
import re
import weakref
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptbench.base.errors import DoesNotFitError
from gptbench.build import (
    CACHE_MULTIPLE,
    alternatives,
    build,
    cache_length,
    check_memory,
    fill,
    memory_need,
    memory_need_of,
    on_meta,
)
from gptbench.config import Config, DeviceConfig, DeviceKind, Dtype, HuggingFaceConfig, ModelConfig
from gptbench.device import Device
from gptbench.device.group import DeviceGroup
from gptbench.model import Transformer
from tests.models import (
    CPU,
    DENSE,
    GQA,
    MOE,
    QUANTISATIONS,
    TINY,
    make_model,
    model_config,
    model_name,
    prefill,
    quant_section,
    random_tokens,
    run_config,
    step,
    tiny,
)
from tests.pairwise import for_each

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

SEED_PROMPT = (1, 15043, 29892, 590, 1024, 338)


def meta(config: ModelConfig, quant: str = "none", dtype: torch.dtype = torch.bfloat16) -> Transformer:
    return on_meta(config, quant_section(quant), dtype)


@for_each("prompt, new_tokens, expected", [(6, 200, 208), (1, 7, 8), (1, 8, 16), (5, 3, 8), (40, 17, 64)])
def test_cache_length_holds_prompt_and_new_tokens(prompt: int, new_tokens: int, expected: int) -> None:
    config = run_config(dataclasses.replace(DENSE, context=1000), prompt=[1] * prompt, new_tokens=new_tokens)
    assert cache_length(config) == expected
    assert expected % CACHE_MULTIPLE == 0


def tensor_bytes(model: Transformer) -> tuple[int, int]:
    """Bytes of weights and of KV caches as they lie in memory, each storage once."""

    def held(tensors: list[torch.Tensor]) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    caches = [tensor for cache in model.memory.caches for tensor in cache.tensors]
    weights = [p for module in model.modules() for p in module.parameters(recurse=False)]
    return held(weights), held(caches)


@for_each("batch", [1, 3])
@for_each("dtype", [torch.float32, torch.bfloat16])
@for_each("quant", QUANTISATIONS)
@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_weights_and_cache_take_what_was_foretold(
    config: ModelConfig, quant: str, dtype: torch.dtype, batch: int
) -> None:
    need = memory_need(meta(config, quant, dtype), batch, prompt=5, length=17)
    model = make_model(config, quant, batch=batch, length=17, dtype=dtype)
    assert (need.weights, need.kv_cache) == tensor_bytes(model)
    assert memory_need(model, batch, prompt=5, length=17) == need  # with memory as without
    assert need.total == need.weights + need.kv_cache + need.workspace


class PeakBytes(TorchDispatchMode):
    """Most bytes that tensors made within it held at once: exact, where a process's resident memory is not."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if self.counts(leaf)}
        for leaf in tree_leaves(result):
            if self.counts(leaf):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known | given:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    @staticmethod
    def counts(leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_peak_bytes_counts_what_lives_at_once() -> None:
    with PeakBytes() as counter:
        a = torch.zeros(1000)
        b = a[3:].view(-1) + 1  # a and b
        del a
        b = (b * 2) * 3  # b and two more, or one where it is freed in time
        b.add_(1)
    assert 2 * 4 * 997 <= counter.peak <= 4 * (1000 + 2 * 997)
    assert counter.now == 4 * 997
    del b
    assert counter.now == 0


WIDE_HEAD = tiny("wide-head", vocab_size=8009, dim=64, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=176, context=256)
WIDE_MOE = dataclasses.replace(
    WIDE_HEAD, name="wide-moe", vocab_size=499, ffn_dim=1408, n_experts=8, n_active_experts=2
)


WINDOWED = dataclasses.replace(
    WIDE_HEAD, name="windowed", vocab_size=499, n_heads=8, n_kv_heads=2, head_dim=16, context=4096, sliding_window=700
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("config", [WIDE_HEAD, WIDE_MOE], ids=model_name)
def test_building_takes_no_more_than_was_foretold(config: ModelConfig, quant: str, dtype: torch.dtype) -> None:
    model = meta(config, quant, dtype)
    need = memory_need(model, 1, prompt=5, length=24)
    with PeakBytes() as counter:
        model.to_empty(device=CPU)
        fill(model, 1)
        memory = model.allocate(1, 24, CPU)
    tables = sum(buffer.nbytes for table in memory.rope_tables for buffer in table.buffers())
    assert counter.now >= need.weights + need.kv_cache
    assert counter.peak <= need.total + tables
    if (config, quant) != (WIDE_MOE, "int8"):  # which needs more when it runs: a cast of every expert
        assert counter.peak >= need.total / 2  # a forecast that is always far too high would refuse what fits


@pytest.mark.parametrize(
    ("config", "quant", "batch", "prompt"),
    [
        (WIDE_HEAD, "none", 1, 6),
        (WIDE_HEAD, "none", 3, 200),
        (WIDE_HEAD, "int8", 1, 6),
        (WIDE_HEAD, "int8", 3, 200),
        (WIDE_MOE, "none", 1, 6),
        (WIDE_MOE, "none", 3, 6),
        (WIDE_MOE, "none", 3, 200),
        (WIDE_MOE, "int8", 3, 6),
        (WIDE_MOE, "int8", 4, 200),
        (WINDOWED, "none", 1, 900),
        (WINDOWED, "none", 1, 3000),
    ],
    ids=lambda value: model_name(value) or str(value),
)
def test_running_takes_no_more_than_was_foretold(config: ModelConfig, quant: str, batch: int, prompt: int) -> None:
    """Prefill and one step of the model's own code."""
    model = make_model(config, quant, batch=batch, length=prompt + 8)
    need = memory_need(model, batch, prompt, prompt + 8)
    tokens = random_tokens(config, batch, prompt)
    with PeakBytes() as counter:
        prefill(model, tokens)
        step(model, tokens[:, :1], prompt, prompt + 8)
    assert counter.peak <= need.workspace


def test_masks_of_the_transformers_library_count() -> None:
    config = dataclasses.replace(
        run_config(WINDOWED, prompt=[1] * 2000, new_tokens=8),
        engine=HuggingFaceConfig(_target_="gptbench.engine.HuggingFace", name="hf"),
    )
    model = on_meta(WINDOWED, quant_section("none"), torch.bfloat16)
    masks = memory_need_of(config, model).workspace - memory_need(model, 1, 2000, 2008).workspace
    assert masks == 2000 * 2008 * (1 + 2)
    whole = dataclasses.replace(WINDOWED, sliding_window=0)
    config = dataclasses.replace(config, model=whole)
    assert memory_need_of(config, model) == memory_need(model, 1, 2000, 2008)


class FakeDevice:
    """So much free memory, and nothing that could be allocated."""

    name = "Abacus 9000"

    def __init__(self, free: float, dtype: torch.dtype = torch.bfloat16) -> None:
        self.torch, self.dtype, self.free = torch.device("meta"), dtype, int(free)

    def free_memory(self) -> int:
        return self.free


def fake(free: float) -> Device:
    return cast(Device, FakeDevice(free))


def seed_run(name: str = "llama2_7b", quant: str = "none", batch: int = 1) -> Config:
    return run_config(model_config(name), quant, SEED_PROMPT, 200, batch)


def test_a_run_that_does_not_fit_is_refused_with_numbers_and_what_would_fit() -> None:
    config, model = seed_run(), meta(model_config("llama2_7b"))
    others = iter(
        [("quant=int8", 7_250_000_000), ("model=llama2_70b", 140_000_000_000), ("model=mini", 10_000_000_000)]
    )
    with pytest.raises(DoesNotFitError) as raised:
        check_memory(config, model, DeviceGroup((fake(10e9),)), others)
    message = str(raised.value)
    assert "model=llama2_7b quant=none workload.batch_size=1 needs " in message
    assert "weights 13.48 GB" in message  # 6,738,415,616 parameters of two bytes: the whole embedding is held
    assert "KV cache 0.11 GB" in message  # 208 positions of 524,288 bytes
    total = re.search(r"needs ([\d.]+) GB", message)
    assert total is not None
    assert float(total[1]) >= 13.48 + 0.11
    assert "meta (Abacus 9000) has only 10.00 GB free" in message
    # What fits is told, to the byte; what does not is left out.
    assert "\n  quant=int8: 7.25 GB" in message
    assert "\n  model=mini: 10.00 GB" in message
    assert "llama2_70b" not in message
    assert isinstance(raised.value, ValueError)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_nothing_that_fits_is_said_too() -> None:
    with pytest.raises(DoesNotFitError, match="No configuration in conf/ would fit"):
        check_memory(
            seed_run(), meta(model_config("llama2_7b")), DeviceGroup((fake(1e6),)), iter([("model=mini", 10_000_000)])
        )


def test_the_last_byte_decides() -> None:
    config, model = seed_run(), meta(model_config("llama2_7b"))
    need = memory_need(model, 1, 6, 208).total
    others = iter([("quant=int8", 1)])
    check_memory(config, model, DeviceGroup((fake(need),)), others)
    assert next(others) == ("quant=int8", 1)  # not looked at where the run fits
    with pytest.raises(DoesNotFitError):
        check_memory(config, model, DeviceGroup((fake(need - 1),)), iter(()))


@for_each("quant", QUANTISATIONS)
def test_batch_and_length_count(quant: str) -> None:
    model = meta(model_config("llama2_7b"), quant)
    one, three = memory_need(model, 1, 6, 208), memory_need(model, 3, 6, 208)
    assert three.weights == one.weights
    assert three.kv_cache == 3 * one.kv_cache == 3 * 208 * 524_288
    assert memory_need(model, 1, 6, 416).kv_cache == 2 * one.kv_cache
    assert memory_need(model, 1, 4000, 4096).workspace > one.workspace


@pytest.mark.parametrize("free", [1e9, 40e9], ids="free={:g}".format)
def test_every_alternative_that_is_offered_fits(free: float) -> None:
    """And is written as on the command line, so that it can be taken at its word."""
    config = seed_run("mixtral", "none", batch=4)
    offered = [(what, total) for what, total in alternatives(config, DeviceGroup((fake(free),))) if total <= free]
    assert offered
    for what, total in offered:
        chosen = dict(part.split("=") for part in what.split())
        assert set(chosen) <= {"model", "quant", "workload.batch_size"}
        batch = int(chosen.get("workload.batch_size", 4))
        quant = chosen.get("quant", "none")
        model = meta(model_config(chosen.get("model", "mixtral")), quant)
        assert memory_need(model, batch, 6, 208).total == total


def test_every_alternative_is_a_run_that_the_configuration_takes() -> None:
    for what, _ in alternatives(seed_run("mixtral"), DeviceGroup((fake(1e12),))):
        chosen = dict(part.split("=") for part in what.split())
        seed_run(chosen.get("model", "mixtral"), chosen.get("quant", "none"), int(chosen.get("workload.batch_size", 1)))


def test_alternatives_leave_out_what_the_quantisation_refuses() -> None:
    device = cast(Device, FakeDevice(1e12, torch.float16))
    of = seed_run(batch=4)
    of = dataclasses.replace(of, device=dataclasses.replace(of.device, dtype=Dtype.float16))
    told = [what for what, _ in alternatives(of, DeviceGroup((device,)))]
    assert [what for what in told if what.startswith("quant=")] == [
        f"quant=none workload.batch_size={batch}" for batch in (4, 2, 1)
    ]
    assert "model=stories110m" in told
    assert "model=stories15m" in told  # 206 of 256 positions
    long = run_config(model_config("llama2_7b"), prompt=SEED_PROMPT, new_tokens=300)
    assert "model=stories15m" not in [what for what, _ in alternatives(long, DeviceGroup((fake(1e12),)))]


@pytest.mark.parametrize("config", [DENSE, GQA, MOE], ids=model_name)
def test_on_meta_nothing_is_allocated(config: ModelConfig) -> None:
    with PeakBytes() as counter:
        for quant in QUANTISATIONS:
            for name in ("llama2_70b", "mixtral"):
                model = meta(model_config(name), quant)
                assert all(p.is_meta for p in model.parameters())
            memory_need(meta(config, quant), 1, 6, 16)
    assert counter.peak == 0
    assert not model.training


@pytest.mark.parametrize("quant", QUANTISATIONS)
@pytest.mark.parametrize("config", TINY, ids=model_name)
def test_build_gives_weights(config: ModelConfig, quant: str) -> None:
    run = run_config(config, quant, new_tokens=6, batch=3)
    device = Device(DeviceConfig(_target_="gptbench.device.Device", name="cpu", kind=DeviceKind.cpu))
    model = meta(config, quant, torch.float32)
    assert build(run, model, device) is None, "no checkpoint"
    expected = make_model(config, quant, batch=3, length=16, seed=run.workload.seed)
    assert not [*model.buffers()], "caches are the engines'"
    for (name, tensor), (_, other) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(tensor, other), name
