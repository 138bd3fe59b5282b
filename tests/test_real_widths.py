"""Engines on a GPU at the widths of real models, with few layers: tiny models hide what real shapes break.

A vocabulary of 32,000 makes TorchInductor split its scans, a width of 4096 gives a kernel several waves of programs, a
batch over one reads each weight for several rows.
"""

from dataclasses import replace

import pytest
import torch

from gptbench.config import EngineConfig, HuggingFaceConfig, ModelConfig, Scope
from gptbench.kernels.sample_reference import cumsum_rows, running_sum
from tests.models import model_config
from tests.test_engines import EAGER, FUSED, assert_agrees, device, inductor, make_engine

pytestmark = pytest.mark.usefixtures("nothing_compiled")

HF = HuggingFaceConfig(_target_="gptbench.engine.HuggingFace", name="hf")
LLAMA, GROUPED, SMALL, MIXTURE, MANY_EXPERTS, WINDOWED = (
    replace(model_config(name), n_layers=layers)
    for name, layers in (
        ("llama2_7b", 2),
        ("llama3_8b", 1),
        ("qwen2_5_0_5b", 3),
        ("mixtral", 1),
        ("qwen3_30b_a3b", 1),
        ("mistral_7b", 1),
    )
)

CASES = [
    *(
        (engine, LLAMA, quant, batch)
        for engine in (inductor(), FUSED)
        for quant in ("none", "int8")
        for batch in (1, 8)
    ),
    *((engine, GROUPED, "none", 3) for engine in (inductor(), FUSED, HF)),
    *((engine, SMALL, "int8", batch) for engine in (inductor(), FUSED) for batch in (2, 5)),
    *((engine, MIXTURE, "int8", 4) for engine in (inductor(), FUSED)),
    *((engine, MANY_EXPERTS, "none", batch) for engine in (inductor(), FUSED) for batch in (1, 3)),
    (inductor(scope=Scope.model), LLAMA, "none", 8),
    (inductor(), WINDOWED, "none", 2),
    (FUSED, WINDOWED, "int8", 2),
    (HF, MIXTURE, "none", 2),
    (HF, LLAMA, "none", 8),
]


def case_name(value: object) -> str | None:
    return value.name if isinstance(value, (EngineConfig, ModelConfig)) else None


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "model", "quant", "batch"), CASES, ids=case_name)
def test_agrees_with_eager_at_real_widths(config: EngineConfig, model: ModelConfig, quant: str, batch: int) -> None:
    on, dtype = device("cuda"), torch.bfloat16
    reference = make_engine(EAGER, model, quant, batch, dtype, on)
    assert_agrees(make_engine(config, model, quant, batch, dtype, on), reference, dtype)


def test_the_running_sum_is_an_operation_that_a_compiler_can_take() -> None:
    x = torch.rand(3, 1000, generator=torch.Generator().manual_seed(1))
    torch.library.opcheck(cumsum_rows, (x,))
    assert torch.equal(cumsum_rows(x), x.cumsum(-1))
    assert torch.equal(running_sum(x), x.cumsum(-1))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_the_compiled_running_sum_over_a_real_vocabulary(batch: int) -> None:
    x = torch.rand(batch, 32_003, device="cuda")
    found = torch.compile(lambda x: running_sum(x.softmax(-1)), fullgraph=True, dynamic=False)(x)
    expected = x.double().softmax(-1).cumsum(-1)
    assert torch.allclose(found.double(), expected, atol=1e-5)
