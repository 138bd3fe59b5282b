"""Maximum logit of each chunk of neighbouring token ids, the index with which `gptbench.kernels.sample` samples."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gptbench.kernels.launch import launch, pdl_wait_and_trigger
from gptbench.kernels.op import Bytes, Op, type_name

CHUNK = 16
BLOCK = 256
WARPS = 4


@dataclass(frozen=True)
class MaximaScratch:
    """Scratch memory of `SampleToken`."""

    maxima: Tensor
    """Maximum of logits i · C to (i + 1) · C - 1, as far as they exist, float32 [B, ceil(V / C)]. To be written before
    each `SampleToken`, by `Maxima` or by whichever kernel writes the logits."""
    chunks: Tensor
    """Chunks that may hold a kept token, in order, int32 of the same shape."""
    chunk: int
    """Logits per chunk C, a power of two."""

    @classmethod
    def empty(cls, batch: int, vocab_size: int, device: torch.device, chunk: int = CHUNK) -> "MaximaScratch":
        shape = batch, -(-vocab_size // chunk)
        return cls(
            maxima=torch.empty(shape, dtype=torch.float32, device=device),
            chunks=torch.empty(shape, dtype=torch.int32, device=device),
            chunk=chunk,
        )


@triton.jit
def maxima_kernel(logits, maxima, V, C: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Write the maxima of BLOCK chunks of a row per CTA."""
    pdl_wait_and_trigger(PDL)
    row = tl.program_id(1)
    n_chunks = tl.cdiv(V, C)
    chunk = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = chunk[:, None] * C + tl.arange(0, C)[None, :]
    x = tl.load(logits + row * V + token, mask=token < V, other=-float("inf"))
    tl.store(maxima + row * n_chunks + chunk, tl.max(x, 1), mask=chunk < n_chunks)


@dataclass(frozen=True, eq=False)
class Maxima(Op):
    """Writes the maximum logit of each chunk to the scratch memory of `SampleToken`."""

    logits: Tensor
    """Logits, float32 [B, V], contiguous."""
    scratch: MaximaScratch

    name = "maxima_kernel"
    part = "sampling"

    def launch(self, pdl: bool = False) -> None:
        batch, vocab_size = self.logits.shape
        launch(
            maxima_kernel,
            (triton.cdiv(self.scratch.maxima.shape[1], BLOCK), batch),
            self.logits,
            self.scratch.maxima,
            vocab_size,
            C=self.scratch.chunk,
            BLOCK=BLOCK,
            PDL=pdl,
            num_warps=WARPS,
            launch_pdl=pdl,
        )

    def reference(self) -> None:
        padding = self.scratch.maxima.shape[1] * self.scratch.chunk - self.logits.shape[1]
        padded = torch.nn.functional.pad(self.logits, (0, padding), value=-torch.inf)
        self.scratch.maxima.copy_(padded.unflatten(-1, (-1, self.scratch.chunk)).amax(-1))

    def reads(self) -> tuple[Any, ...]:
        return (self.logits,)

    def writes(self) -> tuple[Any, ...]:
        return (self.scratch.maxima,)

    def bytes_read(self) -> Bytes:
        return Bytes(weights=self.logits.nbytes)

    def other_bytes(self) -> int:
        return self.scratch.maxima.nbytes

    def shape(self) -> dict[str, int]:
        return {"B": self.logits.shape[0], "V": self.logits.shape[1]}

    def flops(self, positions: int) -> int:
        return self.logits.numel()

    @property
    def dtype(self) -> str:
        return type_name(self.logits.dtype)
