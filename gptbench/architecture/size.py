"""How many numbers a model's weights are, from its layers alone: without torch, and without making it."""

from collections.abc import Iterable
from dataclasses import dataclass

from gptbench.architecture.spec import LayerSpec, MixtureSpec, NormKind, NormPlaces


@dataclass(frozen=True)
class Size:
    """Numbers of the weights of a model, or of a part of it."""

    matrices: int = 0
    """Those of matrices that a format stores: all but an embedding that is not the head, too, and routers."""
    rows: int = 0
    """Rows of these matrices, each of which has a scale in int8."""
    others: int = 0
    """Those that always have the model's type."""

    @property
    def parameters(self) -> int:
        return self.matrices + self.others

    @property
    def bf16_bytes(self) -> int:
        """Bytes in bfloat16."""
        return 2 * self.parameters

    @property
    def int8_bytes(self) -> int:
        """Bytes with the matrices in int8 and a scale in bfloat16 for each row, and all else in bfloat16."""
        return self.matrices + 2 * (self.rows + self.others)

    def __add__(self, other: "Size") -> "Size":
        return Size(self.matrices + other.matrices, self.rows + other.rows, self.others + other.others)

    def times(self, count: int) -> "Size":
        return Size(count * self.matrices, count * self.rows, count * self.others)


def matrix(rows: int, columns: int, bias: bool = False) -> Size:
    """A matrix, and what is added to what it gives."""
    return Size(rows * columns, rows, rows if bias else 0)


def size_of(layers: Iterable[LayerSpec], dim: int, vocabulary: int, tied: bool, active: bool = False) -> Size:
    """The weights of a model.

    Args:
        layers: what each layer is.
        dim: D, width of the residual stream.
        vocabulary: V, rows of the embedding and of the head.
        tied: whether the head is the embedding.
        active: whether of a mixture's experts only those count that each token goes through.
    """
    whole = matrix(vocabulary, dim) + Size(others=dim + (0 if tied else vocabulary * dim))
    for layer in layers:
        whole += size_of_layer(layer, active)
    return whole


def size_of_layer(layer: LayerSpec, active: bool) -> Size:
    """The weights of one layer."""
    spec, ffn, dim = layer.attention, layer.ffn, layer.dim
    norm = dim * (2 if layer.norm is NormKind.layer else 1)
    found = matrix(spec.rows, dim, spec.qkv_bias) + matrix(dim, spec.heads * spec.head_dim, spec.output_bias)
    found += Size(others=norm * (4 if layer.norms is NormPlaces.both else 2))
    found += Size(others=(2 * spec.head_dim if spec.qk_norm else 0) + (spec.heads if spec.sinks else 0))
    network = matrix(2 * ffn.width, dim, ffn.bias) + matrix(dim, ffn.width, ffn.bias)
    if not isinstance(ffn, MixtureSpec):
        return found + network
    router = Size(others=ffn.experts * (dim + (1 if ffn.router_bias else 0)))
    return found + router + network.times((ffn.active if active else ffn.experts) + ffn.shared)
