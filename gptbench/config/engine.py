"""The `engine` group: what prefills and decodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from gptbench.config.device import DeviceKind, Dtype
from gptbench.config.quant import UNQUANTISED
from gptbench.config.section import Section
from gptbench.config.sizes import MAX_FUSED_SEQUENCES

if TYPE_CHECKING:
    from gptbench.config.tree import Config


class Scope(Enum):
    """What one compiled graph holds: the whole model, or one block that all layers share."""

    model = "model"
    block = "block"


class CudaGraph(Enum):
    """`step`: one graph of our own for the whole step; `trees`: torch's cudagraph trees; `none`: kernel launches."""

    step = "step"
    trees = "trees"
    none = "none"


class Tuning(Enum):
    """How Inductor finds the block sizes of its kernels on a GPU.

    candidates: the same few are timed for each product that reads a large matrix (see `gptbench.block_sizes`).
    descent: its own coordinate descent, of every kernel; by far the most of the compile time.
    none: its guesses are taken, of which it times two where it has two.
    """

    candidates = "candidates"
    descent = "descent"
    none = "none"


class Cache(Enum):
    """The transformers library's own: `static` has a fixed size and is compiled, `dynamic` grows and is not."""

    static = "static"
    dynamic = "dynamic"


@dataclass(kw_only=True)
class EngineConfig(Section):
    """What turns the model into something that prefills and decodes."""

    GROUP: ClassVar[str] = "engine"

    fresh_cache: bool = False
    """Start from an empty compile cache, so that compile time is cold; else torch's usual cache is used."""
    measure_warm_start: bool = False
    """After the samples, start a second process on the same cache and measure its compile time, warm."""

    LIBRARIES: ClassVar[tuple[str, ...]] = ()
    """What runs the model beside torch and Triton: numbers depend on its version."""
    FOLDERS: ClassVar[tuple[str, ...]] = ()
    """Fields that name a folder, below the one in which the command is typed."""
    OWN_KERNELS: ClassVar[bool] = False
    """Whether a decode step is a list of gptbench's own kernels, which `task=kernels` measures. Then there are the
    fields `pdl` and `tile_cache`, `unsupported_by_kernels`, and `planned` of the engine's class."""

    @classmethod
    def launches_one_graph(cls, recorded: Mapping[str, Any]) -> bool:
        """Whether a whole step is one CUDA graph on a GPU, as such a section says that was recorded."""
        return False

    def unsupported_reason(self, config: "Config") -> str | None:
        """What would have to be different for the engine to do a run, or None if nothing: as far as the configuration
        alone tells, before torch is imported. `gptbench.engine.Runner.unsupported_reason` knows the rest."""
        return None

    def mask_elements(self, config: "Config") -> int:
        """Numbers in the attention masks that the engine's prefill makes beside what the model's own code makes."""
        return 0


@dataclass(kw_only=True)
class AutoConfig(EngineConfig):
    """The fastest engine that runs here; the run says which, and why (see `gptbench.engine.auto`)."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Auto",)

    order: list[str] = field(default_factory=lambda: ["fused", "inductor", "eager"])
    """Engines, the fastest first: the first that can do the run is taken, with the settings that it ships with."""

    def check(self) -> None:
        known = [name for name in ENGINES if name != "auto"]
        if not self.order or not set(self.order) <= set(known):
            raise self.error("order", f"names of engines: {', '.join(known)}")


@dataclass(kw_only=True)
class EagerConfig(EngineConfig):
    """The reference: the model's own code, one operation after the other."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Eager",)


@dataclass(kw_only=True)
class InductorConfig(EngineConfig):
    """Prefill and decode step compiled by TorchInductor."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Inductor",)

    scope: Scope = Scope.block
    """What is compiled as one graph: model or block."""
    cuda_graph: CudaGraph = CudaGraph.step
    """How a step is launched on a GPU: step, trees or none. Without meaning on a CPU."""
    graph_prefill: bool = True
    """Whether prefill, too, is launched as a CUDA graph."""
    tuning: Tuning = Tuning.candidates
    """How block sizes are found on a GPU: candidates, descent or none."""
    tune_prefill: bool = False
    """Whether those of the prefill's kernels are looked for, too; its matrix products are a library's."""

    @classmethod
    def launches_one_graph(cls, recorded: Mapping[str, Any]) -> bool:
        return recorded.get("cuda_graph") == CudaGraph.step.name


@dataclass(kw_only=True)
class FusedConfig(EngineConfig):
    """The decode step as a chain of our own kernels."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.fused.Fused",)
    FOLDERS: ClassVar[tuple[str, ...]] = ("tile_cache",)
    OWN_KERNELS: ClassVar[bool] = True

    pdl: bool = True
    """Whether a kernel starts while the one before it still runs, on a GPU that can (compute capability 9.0 and up)."""
    autotune: bool = False
    """Search the best tiles for the shapes of this model on this device, those that are not kept yet, and keep them."""
    tile_cache: str = "outputs/tiles"
    """Folder with the tiles that were found, a file for each device and each state of the kernels. Shapes
    that it lacks get built-in ones."""

    @classmethod
    def launches_one_graph(cls, recorded: Mapping[str, Any]) -> bool:
        return True

    def unsupported_reason(self, config: "Config") -> str | None:
        if config.device.kind is DeviceKind.cpu:
            return "device.kind=cuda: its kernels need a GPU"
        if find_spec("triton") is None:
            return "Triton"
        return self.unsupported_by_kernels(config)

    def unsupported_by_kernels(self, config: "Config") -> str | None:
        """The same of the kernels alone, which also run elsewhere in Triton's interpreter."""
        batch = config.workload.batch_size
        if config.device.dtype is Dtype.float16:
            return "device.dtype=bfloat16 or float32: a residual stream times a norm's gain may pass float16's 65504"
        if batch > MAX_FUSED_SEQUENCES:
            return f"workload.batch_size={MAX_FUSED_SEQUENCES} at most (it is {batch})"
        if not all(layer.attention.is_plain for layer in config.model.layer_specs):
            return "another model: the kernels have no attention of its kind"
        if not all(layer.ffn.is_plain for layer in config.model.layer_specs):
            return "another model: the kernels have no feed-forward network of its kind"
        for section in config.quant.formats:
            if not section.limits.fused:
                return f"another quant: the kernels have no functions for its weights (it is {section.name})"
        return None


@dataclass(kw_only=True)
class HuggingFaceConfig(EngineConfig):
    """The transformers library's model over the same weights, as a peer."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.HuggingFace",)
    LIBRARIES: ClassVar[tuple[str, ...]] = ("transformers",)

    cache: Cache = Cache.static
    """static, compiled as the library's own `generate` compiles it, or dynamic, one operation after the other."""

    def unsupported_reason(self, config: "Config") -> str | None:
        if any(section._target_ != UNQUANTISED for section in config.quant.formats):
            return f"quant=none: the library takes the weights as they are (it is {config.quant.full_name})"
        return None

    def mask_elements(self, config: "Config") -> int:
        """With a sliding window the library masks each token of the prompt against each cached position."""
        prompt, batch = len(config.workload.prompt), config.workload.batch_size
        length = prompt + config.workload.new_tokens
        if not any(layer.attention.hides(length) for layer in config.model.layer_specs):
            return 0
        return batch * prompt * length


ENGINES: dict[str, type[EngineConfig]] = {
    "auto": AutoConfig,
    "eager": EagerConfig,
    "inductor": InductorConfig,
    "fused": FusedConfig,
    "hf": HuggingFaceConfig,
}
"""The section of each engine, by the name that selects it."""


def engine_of(target: str) -> type[EngineConfig]:
    """The class of an engine's section, by its `_target_`; of a plugin's that is not there, what all are."""
    return next((section for section in ENGINES.values() if target in section.TARGETS), EngineConfig)
