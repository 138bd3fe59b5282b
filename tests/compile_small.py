"""Program that compiles a graph for the CPU, and a Triton kernel for a Hopper GPU that need not be present, and prints
a line of JSON with cache hits and compile times. It is a separate program because the tests' process has Triton's
interpreter in place of the compiler."""

import json

import torch
import triton
from torch._dynamo.utils import compilation_time_metrics, counters
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gptbench.engine.inductor import trust_vector_instructions
from gptbench.kernels.read_reduce import kernel
from gptbench.measure.compilation import CompileWatch, covered
from gptbench.schema.compilation import costs


@torch.compile(fullgraph=True, dynamic=False)
def graph(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.cos(), -1)


trust_vector_instructions()  # as an engine does
with CompileWatch() as watch:
    x = torch.linspace(-3, 3, 64).reshape(2, 32)
    torch.testing.assert_close(graph(x), torch.softmax(x.cos(), -1))
    signature = {"x": "*i32", "out": "*i32", "n": "i32", "BLOCK": "constexpr", "UNROLL": "constexpr"}
    of = ASTSource(kernel, signature=signature, constexprs={"BLOCK": 256, "UNROLL": 1})
    assert triton.compile(of, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    graphs = {name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}
    spent = {name: sum(seconds) for name, seconds in compilation_time_metrics.items()}
    summary = {
        "caches": graphs | {"triton_hit": watch.triton_hits, "triton_miss": watch.triton_misses},
        "compiles": watch.count,
        "stage_s": costs(sum(spent.values()), spent, triton_s=0.0, capture_s=0.0),
        "triton_s": covered(watch.compiling),
    }
    print(json.dumps(summary))
