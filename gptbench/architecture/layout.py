"""Maps the tensors of a checkpoint to the modules of the model: names, shapes and rows, without any tensor.

Tensors that the checkpoint stores separately and the model fuses into one matrix (queries, keys and values; gate and up
projections; experts) each fill their rows of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gptbench.architecture.spec import LayerSpec


@dataclass(frozen=True)
class Part:
    """Rows of a stored tensor and where they go in the model."""

    module: str
    """Name of the model's module, such as `blocks.3.attention.wqkv`."""
    row: int = 0
    """First row of the module that the part fills."""
    expert: int | None = None
    """Index of the expert that the part fills; None for a module without experts or a tensor with all experts."""
    first: int = 0
    """First row of the stored tensor that belongs to the part."""
    last: int | None = None
    """End (exclusive) of the rows of the stored tensor that belong to the part; None means to the end."""
    step: int = 1
    """Stride between rows of the stored tensor that belong to the part."""

    @property
    def rows(self) -> slice:
        """Rows of the stored tensor that belong to the part."""
        return slice(self.first, self.last, self.step)

    def within(self, prefix: str) -> "Part":
        """Return the same part with `prefix` in front of the module's name."""
        return replace(self, module=f"{prefix}{self.module}")


@dataclass(frozen=True)
class Target:
    """Shape of a stored tensor and where it goes in the model."""

    shape: tuple[int, ...]
    """Shape of the tensor in the checkpoint: [N], [N, D] or [E, N, D]."""
    parts: tuple[Part, ...]
    """Parts of the tensor, which together cover all its rows."""
    transposed: bool = False
    """Whether the tensor is stored as [..., D, N]."""

    def within(self, prefix: str) -> "Target":
        """Return the same target with `prefix` in front of the modules' names."""
        return replace(self, parts=tuple(part.within(prefix) for part in self.parts))


def single_target(module: str, *shape: int, row: int = 0, expert: int | None = None) -> Target:
    """Return the target of a tensor that goes unchanged to one module."""
    return Target(shape, (Part(module, row, expert),))


@dataclass(frozen=True)
class OuterNames:
    """Names of the tensors outside the layers, and the prefix of those inside."""

    embedding: str
    """Name of the embedding."""
    head: str
    """Name of the output head. A tied model may store it or leave it out."""
    norm: str
    """Name of the norm after the last layer."""
    layer: str
    """Prefix of the names of a layer's tensors; `{}` stands for the number of the layer."""
    ignored: str = r"(?!)"
    """Regular expression for names of tensors to ignore because config.json determines them."""


LayerLayout = Callable[[LayerSpec], dict[str, Target]]
"""Function from a layer's spec to its tensors. Names are relative to the layer, and modules to its block."""

LLAMA_OUTER_NAMES = OuterNames(
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.{}.",
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)",
)
"""Names that Llama's checkpoints have. Old versions of transformers saved RoPE tables, which new ones ignore, too."""

DENSE = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
"""Names of the gate, up and down projections of a dense layer."""


@dataclass(frozen=True)
class LlamaLayer:
    """The layout of a layer with Llama's names, except those of a mixture of experts, which are fields."""

    router: str = ""
    """Name of the router's matrix."""
    expert: tuple[str, str, str] = ("", "", "")
    """Names of an expert's gate, up and down projections; `{}` stands for the index of the expert."""

    def __call__(self, spec: LayerSpec) -> dict[str, Target]:
        attention, dim, width = spec.attention, spec.dim, spec.ffn.width
        head = attention.head_dim
        tensors = {
            "input_layernorm.weight": single_target("attention_norm", dim),
            "post_attention_layernorm.weight": single_target("ffn_norm", dim),
            "self_attn.o_proj.weight": single_target("attention.wo", dim, attention.heads * head),
        }
        row = 0
        for name, heads in (("q", attention.heads), ("k", attention.kv_heads), ("v", attention.kv_heads)):
            tensors[f"self_attn.{name}_proj.weight"] = single_target("attention.wqkv", heads * head, dim, row=row)
            if attention.qkv_bias:
                tensors[f"self_attn.{name}_proj.bias"] = single_target("attention.qkv_bias", heads * head, row=row)
            row += heads * head
        if attention.qk_norm:
            tensors["self_attn.q_norm.weight"] = single_target("attention.q_norm", head)
            tensors["self_attn.k_norm.weight"] = single_target("attention.k_norm", head)
        names, experts = DENSE, list[int | None]([None])
        if (mixture := spec.mixture) is not None:
            names, experts = self.expert, [*range(mixture.experts)]
            tensors[self.router] = single_target("ffn.router", mixture.experts, dim)
        for expert in experts:
            gate, up, down = (name.format(expert) for name in names)
            tensors[gate] = single_target("ffn.w13", width, dim, expert=expert)
            tensors[up] = single_target("ffn.w13", width, dim, row=width, expert=expert)
            tensors[down] = single_target("ffn.w2", dim, width, expert=expert)
        return tensors


LLAMA_LAYER = LlamaLayer()


def layout(
    layer: LayerLayout, names: OuterNames, layers: Sequence[LayerSpec], vocab_size: int, tied: bool
) -> dict[str, Target]:
    """Return the target of every tensor of a model's checkpoint, by the tensor's name.

    Args:
        layer: layout of a layer.
        names: names of the tensors outside the layers.
        layers: spec of each layer.
        vocab_size: V, rows of the embedding and of the head.
        tied: whether the head is the embedding.
    """
    dim = layers[0].dim
    tensors = {names.embedding: single_target("embedding", vocab_size, dim), names.norm: single_target("norm", dim)}
    if not tied:
        tensors[names.head] = single_target("head", vocab_size, dim)
    for number, spec in enumerate(layers):
        prefix = names.layer.format(number)
        tensors |= {f"{prefix}{name}": target.within(f"blocks.{number}.") for name, target in layer(spec).items()}
    return tensors
