"""The kernels around a weight against their references, and these against plain float64. Without a GPU, in Triton's
interpreter: the same assertions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptbench.kernels.activation import Activation
from gptbench.kernels.add_linear import AddLinear
from gptbench.kernels.embed import Embed
from gptbench.kernels.int8_matmul import int8_matmul, int8_matmul_reference
from gptbench.kernels.launch import supports_pdl
from gptbench.kernels.linear import Linear
from gptbench.kernels.matrix import Encoding, Matrix
from gptbench.kernels.norm import Norm
from gptbench.kernels.op import Op, tensors
from gptbench.kernels.route import Route, RouterPartials, RouteScratch, Routing
from gptbench.kernels.swiglu import SwiGLU
from gptbench.kernels.tile_config import TileConfig
from gptbench.quant import Int8, Unquantised, WeightFormat
from tests.pairwise import for_each
from tests.test_kernel_interpreter import prepare_language_once

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAN = float("nan")
EPS = 1e-5
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 1e-2}
"""Of the largest difference over the largest magnitude. Fixed point has 15 bits; bfloat16 has 8."""

DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
"""The interpreter works with numpy, which has no bfloat16."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_language_once(monkeypatch)


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.gpu)], ids=["", "pdl"])
def pdl(request: pytest.FixtureRequest) -> bool:
    if request.param and not supports_pdl(DEVICE):
        pytest.skip("needs programmatic dependent launch")
    return bool(request.param)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def activation(batch: int, width: int, dtype: torch.dtype, encoding: Encoding, seed: int) -> Activation:
    x = Activation.empty(batch, width, dtype, DEVICE, encoding)
    # Neighbours of different magnitude: each group of four has a scale of its own.
    x.write(normal(batch, width, seed=seed) * torch.logspace(-2, 1, width, device=DEVICE))
    return x


def poisoned(batch: int, width: int, dtype: torch.dtype, encoding: Encoding) -> Activation:
    x = Activation.empty(batch, width, dtype, DEVICE, encoding)
    for tensor in tensors(x):
        tensor.fill_(NAN if tensor.is_floating_point() else -1)
    return x


def matrix(*shape: int, dtype: torch.dtype, kind: WeightFormat, seed: int) -> Matrix:
    weight = normal(*shape, seed=seed) * shape[-1] ** -0.5
    packed = kind.pack(weight.flatten(0, -2), dtype)
    return Matrix(kind, tuple(tensor.view(*shape[:-1], *tensor.shape[1:]) for tensor in packed), shape, dtype)


def sum_sq_partials_of(x: Tensor, parts: int) -> Tensor:
    """float32 [B, parts]: of unequal parts, which add up to the squares of x."""
    share = torch.rand(x.shape[0], parts, device=DEVICE)
    return (share / share.sum(-1, keepdim=True) * x.double().square().sum(-1, keepdim=True)).float()


def norm_of(x: Activation, parts: int) -> tuple[Norm, Tensor]:
    """A norm over x, and x normalised: float64."""
    values = x.read()
    factor = torch.rsqrt(values.double().square().mean(-1, keepdim=True) + EPS)
    return Norm(sum_sq_partials_of(values, parts), x.width, EPS), values.double() * factor


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error < TOLERANCE[dtype], error


BOTH = pytest.mark.parametrize("reference", [False, True], ids=["kernel", "reference"])


def run(op: Op, reference: bool, pdl: bool = False) -> None:
    """Either of the two that must do the same."""
    if reference:
        op.reference()
    else:
        op.launch(pdl)


KINDS = pytest.mark.parametrize("kind", [Unquantised(), Int8()], ids=["plain", "int8"])


# rows, columns, batch, tile: rows and columns that a tile divides and that it does not, all or no steps preloaded.
SHAPES = [
    (32, 64, 1, TileConfig(rows=8, block=64, warps=1, preload=1)),
    (48, 112, 1, TileConfig(rows=4, block=64, warps=2, preload=0)),
    (211, 48, 3, TileConfig(rows=8, block=32, warps=1, preload=9)),
    (20, 272, 2, TileConfig(rows=16, block=64, warps=4, preload=3)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@for_each("rows, columns, batch, tile", SHAPES)
@BOTH
def test_linear(
    reference: bool,
    rows: int,
    columns: int,
    batch: int,
    tile: TileConfig,
    kind: WeightFormat,
    dtype: torch.dtype,
    pdl: bool,
) -> None:
    x = activation(batch, columns, dtype, kind.encoding, seed=1)
    norm, normalised = norm_of(x, parts=5)
    weight = matrix(rows, columns, dtype=dtype, kind=kind, seed=2)
    bias = normal(rows, seed=3, dtype=dtype) if rows % 2 else None
    out = torch.full((batch, rows), NAN, device=DEVICE)
    run(Linear(x, norm, weight, bias, out, tile), reference, pdl)
    expected = normalised @ weight.read().double().T
    close(out, expected if bias is None else expected + bias.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@pytest.mark.parametrize("experts", [0, 5], ids="experts={}".format)
@for_each("rows, columns, batch, tile", [SHAPES[0], SHAPES[1], SHAPES[3]])
@BOTH
def test_add_linear(
    reference: bool,
    experts: int,
    rows: int,
    columns: int,
    batch: int,
    tile: TileConfig,
    kind: WeightFormat,
    dtype: torch.dtype,
    pdl: bool,
) -> None:
    x = activation(batch, columns, dtype, kind.encoding, seed=1)
    weight = matrix(rows, columns, dtype=dtype, kind=kind, seed=2)
    before = normal(batch, rows, seed=4, dtype=dtype)
    norm_weight = normal(rows, seed=5, dtype=dtype)
    residual, next_input = before.clone(), poisoned(batch, rows, dtype, kind.encoding)
    sum_sq_partials = torch.full((batch, -(-rows // tile.rows)), NAN, device=DEVICE)
    router_partials = None
    if experts:
        parts = torch.full((*sum_sq_partials.shape, experts), NAN, device=DEVICE)
        router_partials = RouterPartials(normal(experts, rows, seed=6, dtype=dtype), parts)
    run(
        AddLinear(x, weight, None, residual, norm_weight, next_input, sum_sq_partials, router_partials, tile),
        reference,
        pdl,
    )
    expected = before.double() + x.read().double() @ weight.read().double().T
    close(residual, expected, dtype)
    close(next_input.read(), residual.double() * norm_weight.double(), dtype)
    close(sum_sq_partials.sum(-1), residual.double().square().sum(-1), torch.float32)
    for part in range(sum_sq_partials.shape[1]):
        own = residual[:, part * tile.rows : (part + 1) * tile.rows]
        close(sum_sq_partials[:, part], own.double().square().sum(-1), torch.float32)
        if router_partials is not None:
            columns_of = slice(part * tile.rows, (part + 1) * tile.rows)
            scaled = own.double() * norm_weight[columns_of].double()
            close(
                router_partials.partial_logits[:, part],
                scaled @ router_partials.weight[:, columns_of].double().T,
                torch.float32,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@for_each(
    "wide, columns, batch, tile",
    [
        (32, 64, 1, TileConfig(rows=8, block=64, warps=1, preload=1)),
        (44, 48, 3, TileConfig(rows=16, block=32, warps=2, preload=2)),
    ],
)
@BOTH
def test_swiglu(
    reference: bool,
    wide: int,
    columns: int,
    batch: int,
    tile: TileConfig,
    kind: WeightFormat,
    dtype: torch.dtype,
    pdl: bool,
) -> None:
    x = activation(batch, columns, dtype, kind.encoding, seed=1)
    norm, normalised = norm_of(x, parts=3)
    weight = matrix(2 * wide, columns, dtype=dtype, kind=kind, seed=2)
    out = poisoned(batch, wide, dtype, kind.encoding)
    run(SwiGLU(x, norm, weight, None, out, tile), reference, pdl)
    gate, value = (normalised @ weight.read().double().T).chunk(2, dim=-1)
    close(out.read(), F.silu(gate) * value, dtype)


@for_each("experts, active, batch, parts", [(8, 2, 1, 64), (8, 2, 3, 5), (20, 3, 2, 24), (5, 5, 1, 1), (128, 8, 8, 64)])
@BOTH
def test_route(reference: bool, experts: int, active: int, batch: int, parts: int, pdl: bool) -> None:
    x, width = normal(batch, 96, seed=1), 96
    norm = Norm(sum_sq_partials_of(x, parts), width, EPS)
    router_partials = RouterPartials(torch.empty(experts, width), normal(batch, parts, experts, seed=2) * parts**-0.5)
    routing, scratch = Routing.empty(batch, experts, active, DEVICE), RouteScratch.empty(batch, experts, DEVICE)
    for launch in (1, 2):  # the second time, what the first left behind must not matter
        routing.expert_ids.fill_(77)
        routing.expert_weights.fill_(NAN)
        scratch.logits.fill_(NAN)
        run(Route(router_partials, norm, routing, scratch), reference, pdl)
        assert not scratch.finished.any()
        factor = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPS)
        probabilities = (router_partials.partial_logits.double().sum(1) * factor).softmax(-1)
        weights, chosen = probabilities.topk(active, dim=-1)
        weights /= weights.sum(-1, keepdim=True)
        used = sorted(set(chosen.flatten().tolist()))
        assert routing.expert_ids.tolist() == used + [-1] * (len(routing.expert_ids) - len(used))
        assert routing.counter.tolist() == [launch * len(used)]
        expected = torch.zeros(experts, batch, dtype=torch.float64, device=DEVICE)
        expected.scatter_(0, chosen.T, weights.T)
        close(routing.expert_weights[: len(used)], expected[used], torch.float32)
        assert torch.equal(routing.expert_weights[: len(used)] > 0, expected[used] > 0)


@for_each("experts", [8, 20])
@BOTH
def test_route_takes_the_first_of_equals(reference: bool, experts: int) -> None:
    router_partials = RouterPartials(torch.empty(experts, 16), torch.full((1, 4, experts), 0.25, device=DEVICE))
    routing, scratch = Routing.empty(1, experts, 2, DEVICE), RouteScratch.empty(1, experts, DEVICE)
    run(Route(router_partials, Norm(torch.ones(1, 4, device=DEVICE), 16, EPS), routing, scratch), reference)
    assert routing.expert_ids.tolist() == [0, 1]
    assert routing.expert_weights.tolist() == [[0.5], [0.5]]


@for_each("experts", [8, 20])
@for_each("value", [NAN, float("inf")])
@BOTH
def test_a_partial_logit_that_is_nan_is_propagated(reference: bool, value: float, experts: int) -> None:
    router_partials = RouterPartials(torch.empty(experts, 16), normal(1, 4, experts, seed=1))
    router_partials.partial_logits[0, 2, 5] = value
    routing, scratch = Routing.empty(1, experts, 2, DEVICE), RouteScratch.empty(1, experts, DEVICE)
    run(Route(router_partials, Norm(torch.ones(1, 4, device=DEVICE), 16, EPS), routing, scratch), reference)
    assert not torch.isfinite(routing.expert_weights).all()


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@pytest.mark.parametrize("batch", [1, 3])
@BOTH
def test_mixture(reference: bool, batch: int, kind: WeightFormat, dtype: torch.dtype, pdl: bool) -> None:
    """Up and down through the experts that two or more slots name, one of them left empty."""
    experts, wide, dim = 4, 24, 32
    max_experts = [0, 2, 3, -1] if batch > 1 else [1, 3]
    routing = Routing.empty(batch, experts, 2, DEVICE)
    routing.expert_ids.copy_(torch.tensor(max_experts, dtype=torch.int32))
    routing.expert_weights.copy_(torch.rand(len(max_experts), batch))
    if batch > 1:
        routing.expert_weights[3] = NAN
        routing.expert_weights[1, 0] = 0.0
    x = activation(batch, dim, dtype, kind.encoding, seed=1)
    norm, normalised = norm_of(x, parts=3)
    w13 = matrix(experts, 2 * wide, dim, dtype=dtype, kind=kind, seed=2)
    w2 = matrix(experts, dim, wide, dtype=dtype, kind=kind, seed=3)
    hidden = poisoned(len(max_experts) * batch, wide, dtype, kind.encoding)
    tile = TileConfig(rows=8, block=32, warps=1, preload=1)
    run(SwiGLU(x, norm, w13, routing, hidden, tile), reference, pdl)
    before, norm_weight = normal(batch, dim, seed=4, dtype=dtype), normal(dim, seed=5, dtype=dtype)
    residual, next_input = before.clone(), poisoned(batch, dim, dtype, kind.encoding)
    tile = TileConfig(rows=4, block=16, warps=1, preload=1)
    sum_sq_partials = torch.full((batch, dim // 4), NAN, device=DEVICE)
    run(AddLinear(hidden, w2, routing, residual, norm_weight, next_input, sum_sq_partials, None, tile), reference, pdl)
    expected = before.double()
    for slot, expert in enumerate(max_experts):
        if expert >= 0:
            gate, value = (normalised @ w13.read().double()[expert].T).chunk(2, dim=-1)
            y = F.silu(gate) * value @ w2.read().double()[expert].T
            expected = expected + routing.expert_weights[slot].double().unsqueeze(-1) * y
    close(residual, expected, dtype)
    close(next_input.read(), residual.double() * norm_weight.double(), dtype)
    close(sum_sq_partials.sum(-1), residual.double().square().sum(-1), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@KINDS
@for_each("batch, width", [(1, 64), (3, 48)])
@BOTH
def test_embed(reference: bool, batch: int, width: int, kind: WeightFormat, dtype: torch.dtype, pdl: bool) -> None:
    weight = matrix(37, width, dtype=dtype, kind=kind, seed=1)
    token = torch.tensor([[36], [0], [17]])[:batch].to(DEVICE)
    norm_weight = normal(width, seed=2, dtype=dtype)
    residual = torch.full((batch, width), NAN, dtype=dtype, device=DEVICE)
    next_input, sum_sq_partials = (
        poisoned(batch, width, dtype, kind.encoding),
        torch.full((batch, 1), NAN, device=DEVICE),
    )
    run(Embed(token, weight, residual, norm_weight, next_input, sum_sq_partials), reference, pdl)
    expected = weight.read().double()[token.squeeze(1)]
    close(residual, expected, dtype)
    close(next_input.read(), residual.double() * norm_weight.double(), dtype)
    close(sum_sq_partials, residual.double().square().sum(-1, keepdim=True), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@for_each("tokens, rows, columns", [(1, 64, 128), (6, 70, 48), (17, 211, 272), (64, 5, 16)])
@pytest.mark.parametrize("function", [int8_matmul, int8_matmul_reference], ids=["kernel", "twin"])
def test_int8_matmul(function: Callable[..., None], tokens: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    x = normal(tokens, columns, seed=1, dtype=dtype)
    weight = matrix(rows, columns, dtype=dtype, kind=Int8(), seed=2)
    out = torch.full((tokens, rows), NAN, dtype=dtype, device=DEVICE)
    function(x, *weight.tensors, out)
    close(out, x.double() @ weight.read().double().T, dtype)


@for_each("value", [NAN, float("inf"), float("-inf")])
@BOTH
def test_nan_and_infinity_are_propagated(reference: bool, value: float) -> None:
    x = activation(1, 16, torch.float32, Encoding.int16, seed=1)
    weight = matrix(8, 16, dtype=torch.float32, kind=Int8(), seed=2)
    residual = normal(1, 8, seed=3)
    residual[0, 5] = value
    next_input, sum_sq_partials = poisoned(1, 8, torch.float32, Encoding.int16), torch.zeros(1, 2, device=DEVICE)
    norm_weight = torch.ones(8, device=DEVICE)
    run(
        AddLinear(x, weight, None, residual, norm_weight, next_input, sum_sq_partials, None, TileConfig(4, 16, 1, 1)),
        reference,
    )
    assert torch.isfinite(next_input.read()[0, :4]).all()
    assert not torch.isfinite(next_input.read()[0, 4:]).any()
    assert not torch.isfinite(sum_sq_partials[0, 1])
