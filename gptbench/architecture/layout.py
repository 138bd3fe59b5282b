"""Which tensors a checkpoint has, and where the model has them: names, shapes and places, without a tensor.

What the checkpoint keeps apart and the model has as one matrix (queries, keys and values; the two inputs of the
feed-forward network; the experts) goes to its own rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gptbench.architecture.spec import LayerSpec


@dataclass(frozen=True)
class Part:
    """Some rows of a stored tensor, and where they go."""

    module: str
    """Name of the model's module, such as `blocks.3.attention.wqkv`."""
    row: int = 0
    """First of the module's rows that they fill."""
    expert: int | None = None
    """Number of the expert, where the module has several and the tensor is one's; of a tensor with all experts None."""
    first: int = 0
    """First of the stored tensor's rows that it takes, where several parts share them."""
    last: int | None = None
    """Row behind the last one that it takes; None of all."""
    step: int = 1
    """From one row that it takes to the next."""

    @property
    def rows(self) -> slice:
        """Those of the stored tensor that it takes."""
        return slice(self.first, self.last, self.step)

    def within(self, prefix: str) -> "Part":
        """The same of a module whose name begins with `prefix`."""
        return replace(self, module=f"{prefix}{self.module}")


@dataclass(frozen=True)
class Target:
    """What is stored under one name, and where it goes."""

    shape: tuple[int, ...]
    """As the checkpoint has it: [N], [N, D] or [E, N, D]."""
    parts: tuple[Part, ...]
    """All of it."""
    transposed: bool = False
    """Whether it is stored as [..., D, N]."""

    def within(self, prefix: str) -> "Target":
        """The same of modules whose names begin with `prefix`."""
        return replace(self, parts=tuple(part.within(prefix) for part in self.parts))


def whole(module: str, *shape: int, row: int = 0, expert: int | None = None) -> Target:
    """A tensor that goes to one place, as it is."""
    return Target(shape, (Part(module, row, expert),))


@dataclass(frozen=True)
class Outside:
    """Names of what belongs to no layer."""

    embedding: str
    head: str
    """Of a tied model, too, which may store it or not."""
    norm: str
    """The one after the last layer."""
    layer: str
    """What the names of a layer's tensors begin with; `{}` is its number."""
    ignored: str = r"(?!)"
    """Regular expression for names of what follows from config.json."""


LayerLayout = Callable[[LayerSpec], dict[str, Target]]
"""The tensors of a layer by their names within it; modules are named within the layer's block."""

LLAMA_OUTSIDE = Outside(
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.{}.",
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)",
)
"""Ignored: what older versions of the library saved although it follows; newer ones pass over it, too."""

DENSE = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
"""Names of gate, up and down."""


@dataclass(frozen=True)
class LlamaLayer:
    """A layer with Llama's names, but for those of a mixture."""

    router: str = ""
    """Name of the router's matrix."""
    expert: tuple[str, str, str] = ("", "", "")
    """Names of an expert's matrices: gate, up and down; `{}` is its number."""

    def __call__(self, spec: LayerSpec) -> dict[str, Target]:
        attention, dim, width = spec.attention, spec.dim, spec.ffn.width
        head = attention.head_dim
        tensors = {
            "input_layernorm.weight": whole("attention_norm", dim),
            "post_attention_layernorm.weight": whole("ffn_norm", dim),
            "self_attn.o_proj.weight": whole("attention.wo", dim, attention.heads * head),
        }
        row = 0
        for name, heads in (("q", attention.heads), ("k", attention.kv_heads), ("v", attention.kv_heads)):
            tensors[f"self_attn.{name}_proj.weight"] = whole("attention.wqkv", heads * head, dim, row=row)
            if attention.qkv_bias:
                tensors[f"self_attn.{name}_proj.bias"] = whole("attention.qkv_bias", heads * head, row=row)
            row += heads * head
        if attention.qk_norm:
            tensors["self_attn.q_norm.weight"] = whole("attention.q_norm", head)
            tensors["self_attn.k_norm.weight"] = whole("attention.k_norm", head)
        names, experts = DENSE, list[int | None]([None])
        if (mixture := spec.mixture) is not None:
            names, experts = self.expert, [*range(mixture.experts)]
            tensors[self.router] = whole("ffn.router", mixture.experts, dim)
        for expert in experts:
            gate, up, down = (name.format(expert) for name in names)
            tensors[gate] = whole("ffn.w13", width, dim, expert=expert)
            tensors[up] = whole("ffn.w13", width, dim, row=width, expert=expert)
            tensors[down] = whole("ffn.w2", dim, width, expert=expert)
        return tensors


LLAMA_LAYER = LlamaLayer()


def layout(
    layer: LayerLayout, outside: Outside, layers: Sequence[LayerSpec], vocab_size: int, tied: bool
) -> dict[str, Target]:
    """Every tensor that a checkpoint of such a model has, by its name there."""
    dim = layers[0].dim
    tensors = {outside.embedding: whole("embedding", vocab_size, dim), outside.norm: whole("norm", dim)}
    if not tied:
        tensors[outside.head] = whole("head", vocab_size, dim)
    for number, spec in enumerate(layers):
        prefix = outside.layer.format(number)
        tensors |= {f"{prefix}{name}": target.within(f"blocks.{number}.") for name, target in layer(spec).items()}
    return tensors
