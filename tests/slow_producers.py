"""Program that compares decode steps with and without PDL, with kernels that are slow to write after they have let the
next one start: a kernel that reads too early would give other results. It is a separate program because the kernels are
compiled anew."""

import itertools
import tempfile
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptbench.config import FusedConfig, SamplingConfig
from gptbench.engine import Shape
from gptbench.engine.fused import Fused
from gptbench.kernels.launch import supports_pdl
from gptbench.model import Transformer
from gptbench.sampling import Sampler
from tests.models import make_model, model_config
from tests.test_engines import device
from tests.test_pdl import MODULES

LENGTH, PROMPT, STEPS = 2048, 1500, 8
MODELS = ("llama2_7b", "llama3_2_1b", "mixtral_16l")


@triton.jit
def slow_follow(PDL: tl.constexpr):
    """Call `pdl_wait_and_trigger`, and then sleep for up to 30 µs, differently in each program."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
        number = tl.program_id(0) * 7919 + tl.program_id(1) * 104729
        tl.inline_asm_elementwise(
            "nanosleep.u32 $1; mov.u32 $0, $1;",
            "=r,r",
            [(number * 1664525 + 1013904223 & 0x7FFFFFFF) % 30000],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def steps(engine: Fused) -> tuple[Tensor, Tensor]:
    """Return the tokens of a prompt and of the steps after it, and the last logits."""
    vocabulary, on = engine.model.config.vocab_size, engine.device
    prompt = torch.randint(vocabulary, (engine.batch, PROMPT), generator=torch.Generator().manual_seed(3))
    engine.seed(7)
    engine.prefill(prompt.to(on.torch))
    for _ in range(STEPS):
        engine.decode()
    on.synchronize()
    return engine.state.tokens[:, : PROMPT + STEPS].clone(), engine.state.logits.clone()


def engine_over(model: Transformer, batch: int, pdl: bool) -> Fused:
    sampling = SamplingConfig(_target_="gptbench.sampling.Sampler", name="x", temperature=0.8, top_k=50)
    target, on = "gptbench.engine.fused.Fused", device("cuda")
    section = FusedConfig(_target_=target, name="fused", pdl=pdl, tile_cache=tempfile.gettempdir())
    engine = Fused(
        section, model, Sampler(sampling, model.config.vocab_size, on.torch), on, Shape(batch, PROMPT, LENGTH)
    )
    engine.prepare()
    return engine


@torch.no_grad()
def main() -> None:
    cuda = torch.device("cuda")
    assert supports_pdl(cuda)
    for module in MODULES:
        module.pdl_wait_and_trigger = slow_follow  # before any kernel is compiled
    for name, quant, batch in itertools.product(MODELS, ("none", "int8"), (1, 3)):
        config = replace(model_config(name), n_layers=2)
        model = make_model(config, quant, batch, LENGTH, torch.bfloat16, device=cuda)
        tokens, logits = steps(engine_over(model, batch, pdl=False))
        overlapping = engine_over(model, batch, pdl=True)
        for _ in range(3):
            other_tokens, other_logits = steps(overlapping)
            assert torch.equal(tokens, other_tokens), (name, quant, batch)
            assert torch.equal(logits, other_logits), (name, quant, batch)
        print(name, quant, batch, "as without delays", flush=True)


if __name__ == "__main__":
    main()
