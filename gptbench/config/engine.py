"""The `engine` group: the implementation that runs the model."""

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
    """What is compiled as one graph: the whole model, or one transformer block that all layers share."""

    model = "model"
    block = "block"


class CudaGraph(Enum):
    """How a decode step is launched: `step` is one CUDA graph that gptbench captures for the whole step, `trees` is
    torch's cudagraph trees, and `none` launches kernel by kernel."""

    step = "step"
    trees = "trees"
    none = "none"


class Tuning(Enum):
    """How TorchInductor chooses the block sizes of its kernels on a GPU.

    candidates: times the same few sizes for every product that reads a large matrix (see `gptbench.block_sizes`).
    descent: TorchInductor's coordinate descent over every kernel, which takes most of the compile time.
    none: uses TorchInductor's first guess; if it has two, it times both.
    """

    candidates = "candidates"
    descent = "descent"
    none = "none"


class Cache(Enum):
    """KV cache of the transformers library: `static` has a fixed size and is compiled, `dynamic` grows and is not."""

    static = "static"
    dynamic = "dynamic"


@dataclass(kw_only=True)
class EngineConfig(Section):
    """The implementation that runs prefill and decode steps: how the model is compiled, and which kernels it uses."""

    GROUP: ClassVar[str] = "engine"

    fresh_cache: bool = False
    """Whether the run starts with an empty compile cache, so that its compile time is a cold one; otherwise torch's
    usual cache is used."""
    measure_warm_start: bool = False
    """Whether a second process on the same compile cache is started after the samples, to measure the warm compile time
    (in seconds)."""

    LIBRARIES: ClassVar[tuple[str, ...]] = ()
    """Libraries beside torch and Triton whose version affects the results."""
    FOLDERS: ClassVar[tuple[str, ...]] = ()
    """Names of fields that hold a folder; a relative one is below the folder in which the command is typed."""
    OWN_KERNELS: ClassVar[bool] = False
    """Whether a decode step is a list of gptbench's kernels, which `task=kernels` can measure. Such a section also has
    the fields `pdl` and `tile_cache` and the method `unsupported_by_kernels`, and the engine's class has `planned`."""

    @classmethod
    def launches_one_graph(cls, recorded: Mapping[str, Any]) -> bool:
        """Whether a whole decode step is one CUDA graph on a GPU, according to a recorded section of this class."""
        return False

    def unsupported_reason(self, config: "Config") -> str | None:
        """Return what would have to change for the engine to support a run, or None if it does.

        Only the configuration is considered, before torch is imported; `gptbench.engine.Runner.unsupported_reason`
        checks the rest.
        """
        return None

    def mask_elements(self, config: "Config") -> int:
        """Number of elements in the attention masks that the engine's prefill makes and the model's code does not."""
        return 0


@dataclass(kw_only=True)
class AutoConfig(EngineConfig):
    """Uses the fastest engine that supports the run on this machine, and reports which one and why (see
    `gptbench.engine.auto`)."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Auto",)

    order: list[str] = field(default_factory=lambda: ["fused", "inductor", "eager"])
    """Names of engines, fastest first; the first one that supports the run is used, with its default settings."""

    def check(self) -> None:
        known = [name for name in ENGINES if name != "auto"]
        if not self.order or not set(self.order) <= set(known):
            raise self.error("order", f"names of engines: {', '.join(known)}")


@dataclass(kw_only=True)
class EagerConfig(EngineConfig):
    """Runs the model's PyTorch code operation by operation; the reference for the other engines."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Eager",)


@dataclass(kw_only=True)
class InductorConfig(EngineConfig):
    """Compiles prefill and decode step with TorchInductor."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Inductor",)

    scope: Scope = Scope.block
    """What is compiled as one graph: model (the whole model) or block (one transformer block that all layers share)."""
    cuda_graph: CudaGraph = CudaGraph.step
    """How a decode step is launched on a GPU: step (one CUDA graph for the whole step), trees (torch's cudagraph trees)
    or none (kernel by kernel); has no effect on a CPU."""
    graph_prefill: bool = True
    """Whether prefill is launched as a CUDA graph, too."""
    tuning: Tuning = Tuning.candidates
    """How the kernels' block sizes are chosen on a GPU: candidates (a few sizes are timed for every product that reads
    a large matrix), descent (TorchInductor's coordinate descent over every kernel, which compiles longest) or none
    (TorchInductor's guess)."""
    tune_prefill: bool = False
    """Whether block sizes are tuned for the prefill's kernels, too; its matrix products come from a library (cuBLAS)
    and are not affected."""

    @classmethod
    def launches_one_graph(cls, recorded: Mapping[str, Any]) -> bool:
        return recorded.get("cuda_graph") == CudaGraph.step.name


@dataclass(kw_only=True)
class FusedConfig(EngineConfig):
    """Runs the decode step as a chain of gptbench's fused Triton kernels, on a GPU."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.fused.Fused",)
    FOLDERS: ClassVar[tuple[str, ...]] = ("tile_cache",)
    OWN_KERNELS: ClassVar[bool] = True

    pdl: bool = True
    """Whether kernels use PDL (programmatic dependent launch): a kernel starts while the one before it is still
    running. It has no effect on a GPU below compute capability 9.0."""
    autotune: bool = False
    """Whether tile configurations that the tile cache lacks are autotuned before the run, for the shapes of this model
    on this device, and stored there."""
    tile_cache: str = "outputs/tiles"
    """Folder of the autotuned tile configurations, with one file per device and version of the kernels. Shapes that it
    lacks use built-in tile configurations."""

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
        """Return what the kernels alone require to change, or None; they also run without a GPU, in Triton's
        interpreter."""
        batch = config.workload.batch_size
        if config.device.dtype is Dtype.float16:
            return (
                "device.dtype=bfloat16 or float32: the residual stream times a norm's weight may exceed float16's 65504"
            )
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
    """Runs the transformers library's implementation of the model on the same weights, for comparison."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.HuggingFace",)
    LIBRARIES: ClassVar[tuple[str, ...]] = ("transformers",)

    cache: Cache = Cache.static
    """KV cache that transformers uses: static (fixed size, compiled as its `generate` compiles it) or dynamic (grows,
    runs operation by operation)."""

    def unsupported_reason(self, config: "Config") -> str | None:
        if any(section._target_ != UNQUANTISED for section in config.quant.formats):
            return f"quant=none: transformers uses unquantised weights (it is {config.quant.full_name})"
        return None

    def mask_elements(self, config: "Config") -> int:
        """With a sliding window, transformers masks every prompt token against every cached position."""
        prompt, batch = len(config.workload.prompt), config.workload.batch_size
        length = prompt + config.workload.new_tokens
        if not any(layer.attention.window_applies(length) for layer in config.model.layer_specs):
            return 0
        return batch * prompt * length


ENGINES: dict[str, type[EngineConfig]] = {
    "auto": AutoConfig,
    "eager": EagerConfig,
    "inductor": InductorConfig,
    "fused": FusedConfig,
    "hf": HuggingFaceConfig,
}
"""Names that select an engine, mapped to the class of its section."""


def engine_of(target: str) -> type[EngineConfig]:
    """Return the class of an engine's section by its `_target_`; `EngineConfig` for a plugin that is not loaded."""
    return next((section for section in ENGINES.values() if target in section.TARGETS), EngineConfig)
