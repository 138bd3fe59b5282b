"""The attention kernel against its reference, and that against the model's own attention."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptbench.config import ModelConfig
from gptbench.kernels.activation import Activation
from gptbench.kernels.attention import Attend
from gptbench.kernels.launch import supports_pdl
from gptbench.kernels.matrix import Encoding
from gptbench.kernels.op import tensors
from gptbench.kernels.split_kv import SplitKVPlan, SplitKVScratch, chunks_per_merge
from gptbench.model import KeyValueCache
from gptbench.model.transformer import Attention
from tests.models import DENSE, GQA, QWEN, WINDOW, model_name, relative_error, rotation_table
from tests.pairwise import pairwise
from tests.test_kernel_interpreter import prepare_language_once

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
POISON = 0x5EADBEEF
BFLOAT16 = 1e-2 if DEVICE.type == "cuda" else 3e-2
"""The interpreter does not round to bfloat16, but cuts off."""
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: BFLOAT16}
"""Of the output: float32 adds up in another order; the others round the weights of the values, and the output."""
KEY_TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: BFLOAT16}
"""Of the new key: a GPU joins multiplication and addition, and rounds once less."""
FIXED_POINT = 1e-4
TWICE = DEVICE.type == "cuda"
"""Whether each kernel is launched again, with what the first launch has left behind. The interpreter takes long: there,
only a test for each way to combine programs does."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_language_once(monkeypatch)


@dataclass(frozen=True)
class Inputs:
    """Operands of `Attend`, except scratch memory and output."""

    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    cos: Tensor
    sin: Tensor
    position: Tensor
    k_cache: Tensor
    v_cache: Tensor
    window: int

    def op(self, scratch: SplitKVScratch, out: Activation) -> Attend:
        return Attend(**vars(self), scratch=scratch, out=out)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, G, K."""
        batch, kv_heads, _, width = self.k_cache.shape
        return batch, self.qkv.shape[1] // width - 2 * kv_heads, kv_heads, width

    def copy(self) -> "Inputs":
        """With caches of its own."""
        return replace(self, k_cache=self.k_cache.clone(), v_cache=self.v_cache.clone())

    def out(self, fixed: bool) -> Activation:
        """Poisoned."""
        batch, heads, _, width = self.shape
        out = Activation.empty(
            batch, heads * width, self.qkv.dtype, DEVICE, Encoding.int16 if fixed else Encoding.plain
        )
        for tensor in tensors(out):
            tensor.fill_(POISON if tensor.dtype == torch.int32 else math.nan)
        return out

    def scratch(self, plan: SplitKVPlan) -> SplitKVScratch:
        """Poisoned, where it may be."""
        scratch = SplitKVScratch.empty(plan, *self.shape, DEVICE)
        for tensor in (scratch.acc_partials, scratch.m_partials, scratch.l_partials):
            tensor.fill_(math.nan)
        return scratch


def make_inputs(
    batch: int,
    heads: int,
    kv_heads: int,
    width: int,
    length: int,
    positions: int | Sequence[int],
    window: int = 0,
    dtype: torch.dtype = torch.float32,
    qk_norm: bool = False,
) -> Inputs:
    """Random, with NaN wherever the cache is not filled: of all rows up to one position, or of each up to another."""
    rows = [positions] * batch if isinstance(positions, int) else positions
    generator = torch.Generator(DEVICE).manual_seed(rows[0] + 1000 * width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    caches = random(2, batch, kv_heads, length, width).to(dtype)
    for row, position in enumerate(rows):
        caches[:, row, :, position:] = math.nan
    angles = (3 * random(length, width // 2)).repeat(1, 2)
    norms = 1 + random(2, width).to(dtype) if qk_norm else (None, None)
    return Inputs(
        qkv=(2 * random(batch, (heads + 2 * kv_heads) * width)).to(dtype),
        q_norm=norms[0],
        k_norm=norms[1],
        eps=1e-5,
        cos=angles.cos(),
        sin=angles.sin(),
        position=torch.tensor(rows, device=DEVICE).unsqueeze(1),
        k_cache=caches[0].clone(),
        v_cache=caches[1].clone(),
        window=window,
    )


def bits(x: Tensor) -> Tensor:
    """To compare NaN with NaN."""
    return x.view(torch.int32 if x.element_size() == 4 else torch.int16)


def check(
    inputs: Inputs,
    plan: SplitKVPlan,
    programs: int | Sequence[int] | None = None,
    fixed: bool = False,
    pdl: bool = False,
    twice: bool = TWICE,
) -> None:
    """Kernel against reference. `programs` of each key-value head must have had something to do, in each row."""
    dtype = inputs.qkv.dtype
    batch, heads, _, width = inputs.shape
    expected, scratch = inputs.copy(), inputs.scratch(plan)
    expected_out = Activation.empty(batch, heads * width, torch.float32, DEVICE, Encoding.plain)
    expected.op(scratch, expected_out).reference()

    actual, out = inputs.copy(), inputs.out(fixed)
    actual.op(scratch, out).launch(pdl)
    tolerance = TOLERANCES[dtype] if not fixed else max(FIXED_POINT, TOLERANCES[dtype])
    assert relative_error(out.read(), expected_out.read()) < tolerance

    new = torch.arange(inputs.k_cache.shape[2], device=DEVICE) == inputs.position  # [B, S]

    def parts(cache: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entries at the rows' positions, and all others."""
        return cache.transpose(1, 2)[new], cache.transpose(1, 2)[~new]

    assert relative_error(parts(actual.k_cache)[0], parts(expected.k_cache)[0]) < KEY_TOLERANCES[dtype]
    assert torch.equal(parts(actual.v_cache)[0], parts(expected.v_cache)[0])
    assert torch.equal(bits(parts(actual.k_cache)[1]), bits(parts(inputs.k_cache)[1]))
    assert torch.equal(bits(parts(actual.v_cache)[1]), bits(parts(inputs.v_cache)[1]))

    assert not scratch.counters.any()
    if programs is not None:
        written = ~scratch.m_partials.isnan().all(-1)  # [B·G, splits]
        of_rows = [programs] * batch if isinstance(programs, int) else programs
        groups = len(written) // batch
        assert written.sum(-1).tolist() == [count if count > 1 else 0 for count in of_rows for _ in range(groups)]

    if not twice:
        return
    again = inputs.out(fixed)
    actual.op(scratch, again).launch(pdl)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(tensors(again), tensors(out), strict=True))
    assert not scratch.counters.any()


GPU_BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)
"""Where the interpreter has shown the same elsewhere, and takes long."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [DENSE, GQA, QWEN, WINDOW], ids=model_name)
def test_twin_is_the_models_attention(config: ModelConfig, dtype: torch.dtype, no_grad: None) -> None:
    for positions in ((0, 23), (1, 5), (19, 19)):
        check_against_the_model(config, dtype, positions)


def check_against_the_model(config: ModelConfig, dtype: torch.dtype, positions: tuple[int, int]) -> None:
    heads, length = (config.n_heads, config.n_kv_heads, config.head_dim), 24
    inputs = make_inputs(2, *heads, length, positions, dtype=dtype, qk_norm=config.qk_norm)
    cos, sin = rotation_table(config, length, DEVICE)
    inputs = replace(inputs, cos=cos, sin=sin, eps=config.norm_eps, window=config.sliding_window)
    layer = config.layer_specs[0]
    attention = Attention(layer, 1, dtype).to(DEVICE)
    cache = KeyValueCache(layer.attention, 2, length, dtype, DEVICE)
    attention.wqkv, attention.wo, attention.qkv_bias = nn.Identity(), nn.Identity(), None
    if attention.q_norm is not None and attention.k_norm is not None:
        attention.q_norm.weight.copy_(inputs.q_norm)
        attention.k_norm.weight.copy_(inputs.k_norm)
    for row, position in enumerate(positions):
        cache.keys[row, :, :position] = inputs.k_cache[row, :, :position]
        cache.values[row, :, :position] = inputs.v_cache[row, :, :position]
    at = inputs.position
    expected = attention(inputs.qkv.unsqueeze(1), cos[at], sin[at], at, cache.tensors).squeeze(1)

    out = inputs.out(fixed=False)
    inputs.op(inputs.scratch(SplitKVPlan(1, 16, 4)), out).reference()
    # The model rounds scores too.
    assert relative_error(out.read(), expected) < (1e-6 if dtype == torch.float32 else 3e-2)
    for row, position in enumerate(positions):
        assert torch.equal(inputs.k_cache[row, :, : position + 1], cache.keys[row, :, : position + 1])
        assert torch.equal(inputs.v_cache[row, :, : position + 1], cache.values[row, :, : position + 1])


POSITIONS = {0: 1, 1: 1, 14: 1, 15: 1, 16: 2, 31: 2, 32: 3, 33: 3, 47: 3, 48: 2, 63: 2, 64: 3, 69: 3}
"""Of 70, by three programs in blocks of 16: how many of them have something to do."""


def test_positions() -> None:
    for position, programs in POSITIONS.items():
        check(make_inputs(1, 4, 2, 16, 70, position), SplitKVPlan(3, 16, 4), programs, twice=True)


RAGGED = {
    # apart, heads, positions of a cache of 70, window: programs of each row, of three in blocks of 16
    "grouped": (False, (4, 2), (0, 69, 33, 15), 0, [1, 3, 3, 1]),
    "per_query_head": (True, (4, 2), (69, 1, 0, 20), 0, [3, 1, 1, 2]),
    "window": (False, (4, 2), (0, 69, 19, 30), 20, [1, 2, 2, 2]),
    "window apart": (True, (2, 2), (68, 14, 69, 0), 40, [3, 1, 3, 1]),
}


@pytest.mark.parametrize(("per_query_head", "heads", "positions", "window", "programs"), RAGGED.values(), ids=RAGGED)
def test_rows_at_positions_of_their_own(
    per_query_head: bool, heads: tuple[int, int], positions: tuple[int, ...], window: int, programs: list[int]
) -> None:
    """From an empty cache to a full one: each row reads what it has filled, and no more. Alone it gives the same."""
    inputs, plan = (
        make_inputs(4, *heads, 16, 70, positions, window, qk_norm=True),
        SplitKVPlan(3, 16, 4, per_query_head),
    )
    for row, position in enumerate(positions):
        hidden = max(0, position + 1 - window) if window else 0
        inputs.k_cache[row, :, :hidden] = inputs.v_cache[row, :, :hidden] = math.nan
    check(inputs, plan, programs, twice=True)
    together = inputs.out(fixed=False)
    inputs.copy().op(inputs.scratch(plan), together).launch()
    for row in range(4):
        each = slice(row, row + 1)
        cut = {name: getattr(inputs, name)[each].clone() for name in ("qkv", "position", "k_cache", "v_cache")}
        alone = replace(inputs, **cut)
        out = alone.out(fixed=False)
        alone.op(alone.scratch(plan), out).launch()
        assert torch.equal(out.read(), together.read()[each]), row


@pytest.mark.parametrize(
    ("dtype", "qk_norm", "fixed"),
    pairwise([torch.float32, torch.float16, torch.bfloat16], [False, True], [False, True]),
    ids=str,
)
def test_types(dtype: torch.dtype, qk_norm: bool, fixed: bool) -> None:
    check(make_inputs(3, 6, 2, 16, 40, 36, dtype=dtype, qk_norm=qk_norm), SplitKVPlan(2, 16, 4), 2, fixed)


@pytest.mark.parametrize("position", [7, 38], ids="position={}".format)
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (8, 1), (20, 1)], ids="{0[0]}:{0[1]}".format)
def test_heads(heads: tuple[int, int], position: int) -> None:
    check(make_inputs(2, *heads, 16, 40, position), SplitKVPlan(2, 16, 4), 1 + (position > 16), fixed=True)


@pytest.mark.parametrize("width", [24, 48, 64, 80, 128], ids="width={}".format)
def test_widths(width: int) -> None:
    fixed = width % 48 == 0
    check(make_inputs(1, 4, 2, width, 50, 45, qk_norm=True), SplitKVPlan(3, 16, 4), 3, fixed)
    check(make_inputs(1, 2, 2, width, 50, 12, dtype=torch.bfloat16), SplitKVPlan(3, 16, 4), 1, not fixed)


@pytest.mark.parametrize("dtype", [torch.float16, GPU_BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("plan", "heads"),
    [
        (SplitKVPlan(1, 64, 4), (3, 3)),
        (SplitKVPlan(1, 128, 8), (6, 3)),
        (SplitKVPlan(3, 64, 8), (8, 2)),
        (SplitKVPlan(2, 32, 4), (3, 3)),
        (SplitKVPlan(2, 32, 4), (6, 3)),
    ],
    ids=str,
)
def test_lanes(plan: SplitKVPlan, heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Of which some have nothing to do, or all have several blocks."""
    for position in (0, 3, 64, 150):
        check(make_inputs(1, *heads, 32, 160, position, dtype=dtype), plan, fixed=True)


GROUPS = [(2, 1), (4, 2), (6, 2), (8, 2)]
"""Query heads that share a key by 2, 3 and 4."""


@pytest.mark.parametrize("dtype", [torch.float32, GPU_BFLOAT16], ids=str)
@pytest.mark.parametrize(
    ("plan", "heads"),
    [
        (plan, GROUPS[(index + shift) % len(GROUPS)])
        for shift in (0, 1)
        for index, plan in enumerate(
            (SplitKVPlan(1, 16, 1), SplitKVPlan(1, 64, 4), SplitKVPlan(3, 16, 2), SplitKVPlan(3, 32, 8))
        )
    ],
    ids=str,
)
def test_groups(plan: SplitKVPlan, heads: tuple[int, int], dtype: torch.dtype) -> None:
    """Of few blocks and many, in one chunk and several; some blocks end before the cache does."""
    for position, programs in ((0, 1), (15, 1), (70, plan.splits), (157, plan.splits)):
        inputs = make_inputs(1, *heads, 32, 160, position, dtype=dtype, qk_norm=position == 157)
        check(inputs, plan, programs, fixed=position == 70)


@pytest.mark.parametrize("dtype", [torch.float32, GPU_BFLOAT16], ids=str)
@pytest.mark.parametrize("heads", [*GROUPS, (3, 3)], ids="{0[0]}:{0[1]}".format)
def test_groups_in_a_window(heads: tuple[int, int], dtype: torch.dtype) -> None:
    """What it hides is not read ahead either, nor what follows the chunk's end."""
    inputs = make_inputs(2, *heads, 16, 160, 150, window=107, dtype=dtype, qk_norm=True)
    inputs.k_cache[:, :, :44] = math.nan
    inputs.v_cache[:, :, :44] = math.nan
    check(inputs, SplitKVPlan(2, 16, 2), 2)
    check(inputs, SplitKVPlan(1, 32, 1), 1, fixed=True)


@pytest.mark.parametrize("width", [6, 24, 80, 128], ids="width={}".format)
def test_groups_of_widths(width: int) -> None:
    check(make_inputs(1, 6, 2, width, 120, 110, qk_norm=True, dtype=torch.float16), SplitKVPlan(2, 16, 4), 2)
    check(make_inputs(1, 4, 1, width, 120, 119, qk_norm=True), SplitKVPlan(1, 32, 4), 1)


DOT_TYPES = [
    ((5, 1), torch.float32),
    ((5, 1), torch.float16),
    ((16, 2), torch.float32),
    ((16, 2), torch.bfloat16),
    ((32, 1), torch.float32),
    ((32, 1), torch.float16),
]


@pytest.mark.parametrize(
    ("plan", "kind", "qk_norm"),
    pairwise([SplitKVPlan(1, 64, 4), SplitKVPlan(3, 16, 4)], DOT_TYPES, [False, True]),
    ids=str,
)
def test_dot_products(plan: SplitKVPlan, kind: tuple[tuple[int, int], torch.dtype], qk_norm: bool) -> None:
    """Heads that fill the rows of a dot product, or do not, or need several."""
    heads, dtype = kind
    for position, window in ((3, 0), (150, 0), (150, 100)):
        inputs = make_inputs(1, *heads, 32, 160, position, window, dtype, qk_norm)
        check(inputs, plan, plan.splits if position > 3 else 1, fixed=position == 3)


UNEVEN = {31: 1, 32: 2, 63: 2, 64: 3, 95: 3, 96: 3, 111: 3, 143: 3, 144: 3, 159: 3}
"""Of 160, by three programs in blocks of 32: how many of them have something to do. Chunks are no whole blocks."""


@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (8, 1)], ids="{0[0]}:{0[1]}".format)
def test_chunks_that_are_no_whole_blocks(heads: tuple[int, int]) -> None:
    for position, programs in UNEVEN.items():
        check(make_inputs(1, *heads, 16, 160, position), SplitKVPlan(3, 32, 2), programs)


def test_odd_pairs_of_components() -> None:
    """An odd number of them, and no more than half a 16-byte load."""
    check(make_inputs(2, 4, 2, 6, 40, 37), SplitKVPlan(2, 16, 4), 2)


TOGETHER_OR_APART = pytest.mark.parametrize("per_query_head", [False, True], ids=["", "per_query_head"])
"""With dot products or without."""


@TOGETHER_OR_APART
def test_window(per_query_head: bool) -> None:
    for position, programs in ((0, 1), (15, 1), (18, 2), (19, 2), (20, 2), (37, 2), (59, 2)):
        check(
            make_inputs(2, 4, 2, 16, 60, position, window=20),
            SplitKVPlan(4, 16, 4, per_query_head),
            programs,
            twice=TWICE or position > 37,
        )


@TOGETHER_OR_APART
def test_width_of_the_window(per_query_head: bool) -> None:
    """From the own position alone to one that is as long as the cache, or longer, and hides nothing."""
    for window in (1, 16, 17, 59, 60, 61):
        check(
            make_inputs(1, 2, 1, 16, 60, 59, window=window),
            SplitKVPlan(4, 16, 4, per_query_head),
            math.ceil(min(window, 60) / 16),
        )


@TOGETHER_OR_APART
@pytest.mark.parametrize("plan", [SplitKVPlan(2, 16, 4), SplitKVPlan(1, 16, 4), SplitKVPlan(1, 32, 4)], ids=str)
def test_what_a_window_hides_is_not_read(plan: SplitKVPlan, per_query_head: bool) -> None:
    """By several programs, and by one of two blocks or one."""
    inputs = make_inputs(1, 4, 2, 16, 60, 45, window=20)
    inputs.k_cache[:, :, :26] = math.nan
    inputs.v_cache[:, :, :26] = math.nan
    check(inputs, replace(plan, per_query_head=per_query_head), plan.splits)


@pytest.mark.parametrize(("heads", "programs"), [(32, 5), (4, 33)])
def test_more_programs_than_are_combined_at_once(heads: int, programs: int) -> None:
    """Of heads of width 128 that share a key."""
    assert chunks_per_merge(heads, 128) == programs - 1
    check(make_inputs(1, heads, 1, 128, 16 * programs, 16 * programs - 5), SplitKVPlan(programs, 16, 4), programs)


def test_large_scores() -> None:
    """Where exponentials would overflow if the largest were not subtracted."""
    inputs = make_inputs(1, 4, 2, 16, 70, 66)
    check(replace(inputs, qkv=inputs.qkv * 100), SplitKVPlan(3, 16, 4), 3)


def test_one_after_the_other() -> None:
    """A text of tokens, with one scratch for all."""
    inputs = make_inputs(1, 4, 2, 16, 36, 13)
    expected, scratch = inputs.copy(), inputs.scratch(SplitKVPlan(3, 16, 4))
    generator = torch.Generator(DEVICE).manual_seed(1)
    for position in range(13, 36):
        inputs.position.fill_(position)
        inputs.qkv.normal_(generator=generator)
        out, expected_out = inputs.out(fixed=False), inputs.out(fixed=False)
        inputs.op(scratch, out).launch()
        expected.op(scratch, expected_out).reference()
        assert relative_error(out.read(), expected_out.read()) < TOLERANCES[torch.float32]


PLANNED = itertools.product([1, 8, 32], [1, 4, 8], [1, 4, 64], [1, 64, 208, 4096, 32768, 131072])


def test_plans() -> None:
    for kv_heads, sharing, batch, length in PLANNED:
        check_plan(kv_heads, sharing, batch, length)


def check_plan(kv_heads: int, sharing: int, batch: int, length: int) -> None:
    """Every processor gets something to do where the context is long, and chunks do not get short."""
    processors = 132
    heads = sharing * kv_heads
    plan = SplitKVPlan.choose(batch, heads, kv_heads, 128, length, window=0, itemsize=2, processors=processors)
    chunk = max(math.ceil(math.ceil(length / plan.splits) / 16) * 16, plan.block)
    assert chunk >= min(64, length)
    assert plan.splits == 1 or length / plan.splits >= 128
    if length >= 8192 * 4:
        assert batch * kv_heads * math.ceil(length / chunk) >= processors


@pytest.mark.parametrize("heads", [(32, 32), (32, 8), (64, 8), (128, 8), (32, 4)], ids=str)
def test_plan_uses_what_there_is(heads: tuple[int, int]) -> None:
    """Few programs are given up so that chunks can be combined in fewer rounds."""
    for length, processors in itertools.product([1408, 3968, 8064, 32768], [78, 108, 114, 132]):
        plan = SplitKVPlan.choose(1, *heads, 128, length, window=0, itemsize=2, processors=processors)
        programs = (2 if heads[0] > heads[1] else 3) * processors // heads[1]
        assert plan.splits >= min(programs, length // 128) * 7 // 8, (length, processors)


def test_plan_for_a_window() -> None:
    assert SplitKVPlan.choose(1, 32, 8, 128, 32768, 4096, 2, 132) == SplitKVPlan.choose(1, 32, 8, 128, 4096, 0, 2, 132)
    assert SplitKVPlan.choose(1, 32, 8, 128, 512, 4096, 2, 132) == SplitKVPlan.choose(1, 32, 8, 128, 512, 0, 2, 132)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("heads", [(6, 2), (8, 1), (3, 3)], ids=str)
def test_heads_apart(heads: tuple[int, int], splits: int) -> None:
    """Each query head has a program, and one of those that share a key writes it."""
    inputs = make_inputs(2, *heads, 16, 70, 45, qk_norm=True)
    check(inputs, SplitKVPlan(splits, 16, 4, per_query_head=True), splits, fixed=True, twice=True)


GPU_SHAPES = {
    "llama2_7b": (1, 32, 32, 128, 208, 105),
    "llama3_8b": (1, 32, 8, 128, 32768, 32767),
    "llama3_8b_short": (2, 32, 8, 128, 208, 105),
    "llama3_8b_batch": (3, 32, 8, 128, 8192, 5001),
    "llama3_8b_ragged": (3, 32, 8, 128, 8192, (8191, 0, 300)),
    "llama2_7b_ragged": (3, 32, 32, 128, 208, (207, 0, 105)),
}


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True], ids=["", "pdl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES.values(), ids=GPU_SHAPES.keys())
def test_models(shape: tuple[Any, ...], dtype: torch.dtype, pdl: bool) -> None:
    if pdl and not supports_pdl(DEVICE):
        pytest.skip("needs compute capability 9.0")
    inputs = make_inputs(*shape, dtype=dtype)
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    batch, heads, kv_heads, width, length, _ = shape
    plan = SplitKVPlan.choose(batch, heads, kv_heads, width, length, 0, dtype.itemsize, processors)
    for fixed in (False, True):
        check(inputs, plan, None, fixed, pdl)


@pytest.mark.gpu
def test_a_captured_launch_follows_the_positions() -> None:
    inputs = make_inputs(2, 8, 2, 64, 1000, 0, dtype=torch.bfloat16)
    inputs.k_cache.normal_()
    inputs.v_cache.normal_()
    scratch, out = inputs.scratch(SplitKVPlan(7, 32, 4)), inputs.out(fixed=False)
    inputs.op(scratch, out).launch()  # compiles it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inputs.op(scratch, out).launch()
    for positions in ((0, 31), (32, 33), (500, 999), (999, 0), (7, 7)):
        inputs.position[:, 0] = torch.tensor(positions)
        expected = inputs.out(fixed=False)
        inputs.op(scratch, expected).reference()
        graph.replay()
        assert relative_error(out.read(), expected.read()) < TOLERANCES[torch.bfloat16]


@pytest.mark.gpu
def test_caches_pass_two_to_the_31() -> None:
    """Offsets need 64 bits there."""
    batch, heads, length, width, position = 132, 8, 16384, 128, 200
    if torch.cuda.mem_get_info()[0] < 2 * 2 * batch * heads * length * width + 2**30:
        pytest.skip("needs 10.2 GB of GPU memory")
    small = make_inputs(1, heads, heads, width, length, position, dtype=torch.bfloat16)
    shape = batch, heads, length, width
    large = replace(
        small,
        qkv=small.qkv.repeat(batch, 1),
        position=small.position.repeat(batch, 1),
        k_cache=torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE),
        v_cache=torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE),
    )
    large.k_cache[-1:], large.v_cache[-1:] = small.k_cache, small.v_cache
    plan, out, expected = SplitKVPlan(2, 64, 4), large.out(fixed=False), small.out(fixed=False)
    large.op(large.scratch(plan), out).launch()
    small.op(small.scratch(plan), expected).reference()
    assert relative_error(out.read()[-1:], expected.read()) < TOLERANCES[torch.bfloat16]
    assert torch.equal(large.v_cache[-1, :, position], small.v_cache[0, :, position])
