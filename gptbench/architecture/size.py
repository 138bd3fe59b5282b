"""Counts the parameters of a model from the specs of its layers, without torch and without making the model."""

from collections.abc import Iterable
from dataclasses import dataclass

from gptbench.architecture.spec import LayerSpec, MixtureSpec, NormKind, NormPlaces


@dataclass(frozen=True)
class Size:
    """Number of parameters of a model or of a part of it."""

    matrices: int = 0
    """Parameters in matrices that can be quantised: all matrices but routers and an untied embedding."""
    rows: int = 0
    """Rows of these matrices. Each row has one scale in int8."""
    others: int = 0
    """Parameters that are never quantised."""

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.matrices + self.others

    @property
    def bf16_bytes(self) -> int:
        """Size in bytes when all parameters are bfloat16."""
        return 2 * self.parameters

    @property
    def int8_bytes(self) -> int:
        """Size in bytes when the matrices are int8 with a bfloat16 scale per row, and all else is bfloat16."""
        return self.matrices + 2 * (self.rows + self.others)

    def __add__(self, other: "Size") -> "Size":
        return Size(self.matrices + other.matrices, self.rows + other.rows, self.others + other.others)

    def times(self, count: int) -> "Size":
        """Return the size of `count` copies."""
        return Size(count * self.matrices, count * self.rows, count * self.others)


def matrix(rows: int, columns: int, bias: bool = False) -> Size:
    """Return the size of a matrix [rows, columns] and its bias, if any."""
    return Size(rows * columns, rows, rows if bias else 0)


def size_of(layers: Iterable[LayerSpec], dim: int, vocabulary: int, tied: bool, active: bool = False) -> Size:
    """Return the size of a model.

    Args:
        layers: spec of each layer.
        dim: D, width of the residual stream.
        vocabulary: V, rows of the embedding and of the head.
        tied: whether the head is the embedding.
        active: whether to count only the experts that each token goes through, instead of all.
    """
    total = matrix(vocabulary, dim) + Size(others=dim + (0 if tied else vocabulary * dim))
    for layer in layers:
        total += size_of_layer(layer, active)
    return total


def size_of_layer(layer: LayerSpec, active: bool) -> Size:
    """Return the size of one layer."""
    spec, ffn, dim = layer.attention, layer.ffn, layer.dim
    norm = dim * (2 if layer.norm is NormKind.layer else 1)
    size = matrix(spec.rows, dim, spec.qkv_bias) + matrix(dim, spec.heads * spec.head_dim, spec.output_bias)
    size += Size(others=norm * (4 if layer.norms is NormPlaces.both else 2))
    size += Size(others=(2 * spec.head_dim if spec.qk_norm else 0) + (spec.heads if spec.sinks else 0))
    network = matrix(2 * ffn.width, dim, ffn.bias) + matrix(dim, ffn.width, ffn.bias)
    if not isinstance(ffn, MixtureSpec):
        return size + network
    router = Size(others=ffn.experts * (dim + (1 if ffn.router_bias else 0)))
    return size + router + network.times((ffn.active if active else ffn.experts) + ffn.shared)
