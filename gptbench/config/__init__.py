"""Every field a user can set: its meaning, its unit, and what it may hold.

The YAML files in ``conf/`` hold values only. Hydra composes them, `load` turns the result into the tree of
dataclasses below, and from there on no code sees a DictConfig. Errors: `ConfigError`, before anything is built.
"""

import itertools
import math
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from gptbench.architecture import CONFIG_FILE, MAX_NAME, of_checkpoint, read_shape, stretched_context
from gptbench.base.address import unusable_address
from gptbench.base.errors import ConfigError, UserError
from gptbench.base.hub import expanded, find_checkpoint
from gptbench.base.paths import conf_folder, shipped_folder
from gptbench.base.redaction import HIDDEN, remember


class WeightSource(Enum):
    """`auto` takes the checkpoint where one is named, and else random weights; `random` never reads one."""

    auto = "auto"
    random = "random"


class CheckpointFormat(Enum):
    """Of the files that hold the weights. `bin` is PyTorch's pickle, of which nothing but tensors is accepted."""

    safetensors = "safetensors"
    bin = "bin"


class DeviceKind(Enum):
    """`auto` takes the GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(Enum):
    """Type of activations, KV cache and unquantised weights; `auto` is bfloat16 on a GPU, float32 on a CPU."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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


class Isolation(Enum):
    """Where a job runs: `none` is in the process that asked for it, `process` in one of its own, so that whatever kills
    or poisons that does not reach the next job."""

    none = "none"
    process = "process"


MOVED_TARGETS = {f"gptbench.measure.{name}": f"gptbench.task.{name}" for name in ("Speed", "Quality", "Kernels")}
"""`_target_` of earlier versions, in files and records, to what it is called now."""


@dataclass(kw_only=True)
class Section:
    """One configuration group. `_target_` names the class that the section builds; only `TARGETS` are accepted."""

    GROUP: ClassVar[str] = ""
    TARGETS: ClassVar[tuple[str, ...]] = ()

    _target_: str = MISSING
    name: str = MISSING
    """Short name, used in tables, run names and baselines."""

    def __post_init__(self) -> None:
        self._target_ = MOVED_TARGETS.get(self._target_, self._target_)
        if self._target_ not in self.TARGETS:
            raise self.error("_target_", self.TARGETS)
        if not is_name(self.name):
            raise ConfigError(f"{self.GROUP}.name", self.name[:MAX_NAME], NAME_EXPECTED)
        self.check()

    def check(self) -> None:
        """Raises ConfigError where a value is out of range."""

    def error(self, name: str, expected: Any) -> ConfigError:
        return ConfigError(f"{self.GROUP}.{name}", getattr(self, name), expected)

    def within(self, low: float, high: int, *names: str) -> None:
        self.at_least(low, *names)
        for name in names:
            if (value := getattr(self, name)) is not None and value > high:
                raise self.error(name, f"a number of at most {high}")

    def at_least(self, low: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= low:  # `not >=` also refuses NaN
                raise self.error(name, f"a number of at least {low}")


S = TypeVar("S", bound=Section)

NAME_EXPECTED = f"a name of 1 to {MAX_NAME} printable characters without slashes, and no dot first"


def is_name(name: str) -> bool:
    """Whether a name can be a part of a file's name, whatever the file system."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not name.startswith(".") and not set("/\\") & set(name)


MIN_NEW_TOKENS = 2
"""One of the prefill, and a decode step's."""
MAX_LAYERS = 1000
"""The deepest published models have under 200, and this many are built within a second."""
MAX_WIDTH = 2**20
"""Of any width and any number of heads: the widest published feed-forward network has 2**16. With it, the elements of
any matrix are counted without overflow."""
MAX_EXPERTS = 2**12
"""Published models have up to 2**11."""
MAX_VOCABULARY = 2**24
"""Sixty times that of any published model."""
MAX_CONTEXT = 2**28
"""Tokens: longer than any published model was made for."""
MAX_TOKENS = 2**22
"""Of a prompt, or generated: a prompt of so many is drawn within a second, and is recorded."""
MAX_SAMPLES = 10_000
MAX_BATCH = 2**16
MAX_RECORD_BYTES = 128 * 2**20
"""Of a record's steps and tokens: half of what is read again (see `gptbench.base.inputs`)."""
STEP_BYTES, TOKEN_BYTES = 30, 12
"""What a step's time and a token take in a record, at most."""
MAX_SECONDS = 30 * 24 * 3600
"""Of a time limit: a month."""
MAX_JOBS = 10_000
"""Of a sweep. All are composed and checked before the first one runs, at some ten a second."""

MOST_THREADS_PER_CORE = 4
"""Far more only wait for each other, and very many crash the process."""

INT8_ALIGNMENT = 16
"""Bytes of the widest load: a row of int8 must be a whole number of them."""

MOST_FUSED_SEQUENCES = 8
"""Sums of more would not fit into a program's registers; and with more, matrix units are the better choice."""

MOST_STOP_TOKENS = 16
"""So many places there are for them on the device, whether they are taken or not."""


@dataclass(kw_only=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths (see `gptbench.model.rope`)."""

    factor: float = MISSING
    """How far the long wavelengths are stretched."""
    low_freq_factor: float = 1.0
    """Wavelengths over original_context / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths under original_context / high_freq_factor stay as they are."""
    original_context: int = 8192
    """Context the model was first trained with, in tokens."""


@dataclass(kw_only=True)
class ModelConfig(Section):
    """Shape of a decoder-only transformer. Capitals as in the whole code: see `gptbench.model.transformer`."""

    GROUP: ClassVar[str] = "model"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.model.Transformer",)

    vocab_size: int = MISSING
    """V, tokens."""
    dim: int = MISSING
    """D, width of the residual stream."""
    n_layers: int = MISSING
    """Number of blocks."""
    n_heads: int = MISSING
    """H, query heads."""
    n_kv_heads: int = MISSING
    """G, key and value heads; divides n_heads."""
    ffn_dim: int = MISSING
    """F, inner width of the feed-forward network (of one expert, in a mixture)."""
    context: int = MISSING
    """Longest sequence the model was made for, in tokens."""
    rope_theta: float = 10000.0
    """Base of the rotary wavelengths."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's stretching of the wavelengths, or null."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    tied: bool = False
    """Whether the output head is the embedding."""
    n_experts: int = 0
    """E, experts of a mixture; 0 is a dense model."""
    n_active_experts: int = 0
    """A, experts that each token goes through."""
    head_dim: int = 0
    """K, width of one head; 0 is dim / n_heads, and is replaced by it."""
    qkv_bias: bool = False
    """Whether something is added to queries, keys and values, as in Qwen 2."""
    qk_norm: bool = False
    """Whether each head's query and key are normalised before they are turned, as in Qwen 3."""
    sliding_window: int = 0
    """Positions that a token attends to, its own included, as in Mistral 7B v0.1; 0 is all before it."""
    checkpoint: str | None = None
    """Folder of a Hugging Face checkpoint. What the YAML leaves open is taken from its config.json, and what the YAML
    says must agree with that."""
    checkpoint_format: CheckpointFormat = CheckpointFormat.safetensors
    """safetensors, or bin, which must be asked for."""
    weights: WeightSource = WeightSource.auto
    """auto or random."""
    tokenizer: str | None = None
    """Folder or file of the tokenizer, or null for the checkpoint's, if it has one."""

    @property
    def reads_checkpoint(self) -> bool:
        """Whether the weights are a checkpoint's."""
        return self.checkpoint is not None and self.weights is WeightSource.auto

    def check(self) -> None:
        self.within(0, MAX_WIDTH, "head_dim")
        self.within(0, MAX_CONTEXT, "sliding_window")
        self.within(1, MAX_WIDTH, "dim", "n_heads", "n_kv_heads", "ffn_dim")
        self.within(1, MAX_LAYERS, "n_layers")
        self.within(1, MAX_VOCABULARY, "vocab_size")
        self.within(1, MAX_CONTEXT, "context")
        self.within(0, MAX_EXPERTS, "n_experts", "n_active_experts")
        if not self.rope_theta > 0:
            raise self.error("rope_theta", "a number over 0")
        if not self.norm_eps > 0:
            raise self.error("norm_eps", "a number over 0")
        if not self.head_dim:
            if self.dim % (2 * self.n_heads):
                raise self.error("n_heads", f"a number that divides dim={self.dim} into heads of even width")
            self.head_dim = self.dim // self.n_heads
        if self.head_dim % 2:
            raise self.error("head_dim", "an even number")
        if self.n_heads % self.n_kv_heads:
            raise self.error("n_kv_heads", f"a divisor of n_heads={self.n_heads}")
        if self.n_experts and not 1 <= self.n_active_experts <= self.n_experts:
            raise self.error("n_active_experts", f"a number from 1 to n_experts={self.n_experts}")
        if not self.n_experts and self.n_active_experts:
            raise self.error("n_active_experts", "0 where n_experts=0")
        if (scaling := self.rope_scaling) is not None:
            for name in ("factor", "low_freq_factor", "high_freq_factor", "original_context"):
                if not getattr(scaling, name) > 0:
                    raise ConfigError(f"model.rope_scaling.{name}", getattr(scaling, name), "a number over 0")
            if not scaling.high_freq_factor > scaling.low_freq_factor:
                raise ConfigError(
                    "model.rope_scaling.high_freq_factor",
                    scaling.high_freq_factor,
                    f"a number over low_freq_factor={scaling.low_freq_factor}",
                )


@dataclass(kw_only=True)
class QuantConfig(Section):
    """How the weights are stored. The class behind `_target_` has no options of its own."""

    GROUP: ClassVar[str] = "quant"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.quant.Unquantised", "gptbench.quant.Int8")

    def refuse(self, model: ModelConfig, dtype: "Dtype") -> str | None:
        """What would have to be different for a model to be stored in this way, or None if nothing."""
        if self._target_ != "gptbench.quant.Int8":
            return None
        if dtype is Dtype.float16:
            return "device.dtype=bfloat16 or float32: sums of unscaled products may pass float16's 65504"
        widths = {"dim": model.dim, "ffn_dim": model.ffn_dim, "n_heads·head_dim": model.n_heads * model.head_dim}
        for name, width in widths.items():
            if width % INT8_ALIGNMENT:
                return f"a model whose {name} is a multiple of {INT8_ALIGNMENT} (it is {width})"
        return None


@dataclass(kw_only=True)
class SamplingConfig(Section):
    """How the next token is drawn: temperature first, then top_k, then top_p of what top_k left."""

    GROUP: ClassVar[str] = "sampling"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sampling.Sampler",)

    temperature: float = 1.0
    """The logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens, and all whose logit equals that of the last of them; or null for all."""
    top_p: float | None = None
    """Only the smallest set of most likely tokens whose probability reaches p, or null for all."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end an answer, at most 16. A row that has drawn one draws it again at every later step, so that
    there are as many steps as without; the answer is what comes before, and the stop token."""

    def check(self) -> None:
        if not 0 <= self.temperature <= 1e30:
            raise self.error("temperature", "a number from 0 (greedy) to 1e30")
        if self.top_k is not None and self.top_k < 1:
            raise self.error("top_k", "a number of at least 1, or null for the whole vocabulary")
        if self.top_p is not None and not 1e-30 <= self.top_p <= 1:  # in float32 less may be 0, and keep nothing
            raise self.error("top_p", "a number from 1e-30 to 1, or null for no limit")
        if len(self.stop_tokens) > MOST_STOP_TOKENS:
            raise self.error("stop_tokens", f"at most {MOST_STOP_TOKENS} token ids")


@dataclass(kw_only=True)
class DeviceConfig(Section):
    """Where it runs."""

    GROUP: ClassVar[str] = "device"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.device.Device",)

    kind: DeviceKind = DeviceKind.auto
    """auto, cpu or cuda."""
    index: int = 0
    """Which GPU, counted from 0."""
    dtype: Dtype = Dtype.auto
    """Type of activations, KV cache and unquantised weights."""
    threads: int | None = None
    """CPU threads for one operation, or null for one a core."""
    measure_roof: bool = False
    """Measure the read roof once more, although outputs/roofs holds one; the highest rate seen counts."""

    def check(self) -> None:
        self.at_least(0, "index")
        most = MOST_THREADS_PER_CORE * (os.cpu_count() or 1)
        if self.threads is not None and not 1 <= self.threads <= most:
            raise self.error("threads", f"a number from 1 to {most}, or null for torch's choice")


@dataclass(kw_only=True)
class EngineConfig(Section):
    """What turns the model into something that prefills and decodes."""

    GROUP: ClassVar[str] = "engine"

    fresh_cache: bool = False
    """Start from an empty compile cache, so that compile time is cold; else torch's usual cache is used."""
    measure_warm_start: bool = False
    """After the samples, start a second process on the same cache and measure its compile time, warm."""

    def refuse(self, config: "Config") -> str | None:
        """What would have to be different for the engine to do a run, or None if nothing; of what the configuration
        tells."""
        return None

    def mask_elements(self, config: "Config") -> int:
        """Numbers in the attention masks that the engine's prefill makes beside what the model's own code makes."""
        return 0


@dataclass(kw_only=True)
class AutoConfig(EngineConfig):
    """The fastest engine that runs here; the run says which, and why (see `gptbench.engine.auto`)."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.Auto",)


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


@dataclass(kw_only=True)
class FusedConfig(EngineConfig):
    """The decode step as a chain of our own kernels."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.fused.Fused",)

    overlap: bool = True
    """Whether a kernel starts while the one before it still runs, on a GPU that can (compute capability 9.0 and up)."""
    tune: bool = False
    """Search the best tiles for the shapes of this model on this device, those that are not kept yet, and keep them."""
    tiles: str = "outputs/tiles"
    """Folder with the tiles that were found, a file for each device and each state of the kernels. Shapes
    that it lacks get built-in ones."""

    def refuse(self, config: "Config") -> str | None:
        batch, quant = config.workload.batch_size, config.quant
        if config.device.dtype is Dtype.float16:
            return "device.dtype=bfloat16 or float32: a residual stream times a norm's gain may pass float16's 65504"
        if batch > MOST_FUSED_SEQUENCES:
            return f"workload.batch_size={MOST_FUSED_SEQUENCES} at most (it is {batch})"
        if quant._target_ not in ("gptbench.quant.Unquantised", "gptbench.quant.Int8"):
            return f"quant=none or int8 (it is {quant.name})"
        return None


@dataclass(kw_only=True)
class HuggingFaceConfig(EngineConfig):
    """The transformers library's model over the same weights, as a peer."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.engine.HuggingFace",)

    cache: Cache = Cache.static
    """static, compiled as the library's own `generate` compiles it, or dynamic, one operation after the other."""

    def refuse(self, config: "Config") -> str | None:
        if config.quant._target_ != "gptbench.quant.Unquantised":
            return f"quant=none: the library takes the weights as they are (it is {config.quant.name})"
        return None

    def mask_elements(self, config: "Config") -> int:
        """With a sliding window the library masks each token of the prompt against each cached position."""
        prompt, batch = len(config.workload.prompt), config.workload.batch_size
        if not 0 < config.model.sliding_window < prompt + config.workload.new_tokens:
            return 0
        return batch * prompt * (prompt + config.workload.new_tokens)


@dataclass(kw_only=True)
class WorkloadConfig(Section):
    """What is run, and how often.

    At most one of `prompt`, `prompts`, `prompt_text` and `prompt_file` says what the prompt is. Without any it is the
    seed's, "Hello, my name is", in the model's own tokens. The rows of a batch get different prompts of one length,
    the first of them that one: windows of the text, one after the other, or random tokens (see `gptbench.text.prompt`).
    Where `prompt`, or a text without `prompt_length`, is all that there is, all get the same.
    """

    GROUP: ClassVar[str] = "workload"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.generate.Workload",)

    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt, the same for every row."""
    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of each row's prompt, one for each of `batch_size`, all of the same length; where they are empty, all
    rows get `prompt`."""
    same_prompt: bool = False
    """Whether all rows of a batch get the first one's prompt. They then choose the same experts of a mixture, and with
    greedy drawing say the same, which is quicker than what different users would see."""
    prompt_text: str | None = None
    """Text of the prompt, for a model with a tokenizer."""
    prompt_file: str | None = None
    """File with the text of the prompt, in UTF-8, for a model with a tokenizer."""
    prompt_length: int | None = None
    """Tokens of the prompt: so many of the text's or file's first ones, or of a novel's that gptbench ships; of a model
    without a tokenizer, so many seeded random ones. null is all that there are."""
    new_tokens: int = MISSING
    """Tokens generated for each row; the first comes from the prefill, the others from decode steps."""
    samples: int = MISSING
    """Timed repetitions, after the warm-up."""
    batch_size: int = 1
    """B, sequences decoded at once."""
    seed: int = 1234
    """Seeds the random weights and random prompts, and, hashed with a sample's number, the drawing of that sample's
    tokens: runs with different seeds share no sample."""

    def check(self) -> None:
        given = [name for name in ("prompt", "prompts", "prompt_text", "prompt_file") if getattr(self, name)]
        if self.prompts:
            self.check_rows()
            if self.prompt == self.prompts[0]:  # the first row's, once they are made
                given.remove("prompt")
        if len(given) > 1:
            raise self.error(given[1], f"null beside workload.{given[0]}: one of both can be the prompt")
        for name in ("prompt", "prompts"):
            if getattr(self, name) and self.prompt_length is not None:
                raise self.error("prompt_length", f"null beside workload.{name}, which has a length of its own")
        for name in ("prompt_text", "prompt_file"):
            if getattr(self, name) == "":
                raise self.error(name, "some text, or null")
        if len(self.prompt) > MAX_TOKENS:
            raise ConfigError("workload.prompt", f"{len(self.prompt)} tokens", f"at most {MAX_TOKENS}")
        self.within(1, MAX_TOKENS, "prompt_length")
        self.within(MIN_NEW_TOKENS, MAX_TOKENS, "new_tokens")
        self.within(1, MAX_SAMPLES, "samples")
        self.within(1, MAX_BATCH, "batch_size")
        sample_bytes = self.new_tokens * (STEP_BYTES + TOKEN_BYTES * self.batch_size)
        if sample_bytes > MAX_RECORD_BYTES:
            most = MAX_RECORD_BYTES // (STEP_BYTES + TOKEN_BYTES * self.batch_size)
            raise self.error("new_tokens", f"at most {most} with batch_size={self.batch_size}: each token is recorded")
        if self.samples * sample_bytes > MAX_RECORD_BYTES:
            told = f"new_tokens={self.new_tokens} and batch_size={self.batch_size}: each token is recorded"
            raise self.error("samples", f"at most {MAX_RECORD_BYTES // sample_bytes} with {told}")
        rows, most = (1 if self.same_prompt else self.batch_size), MAX_RECORD_BYTES // TOKEN_BYTES
        if rows * (self.prompt_length or 0) > most:
            raise self.error("prompt_length", f"at most {most // rows} for each of {rows} rows: each token is recorded")
        if not 0 <= self.seed < 2**31:
            raise self.error("seed", "a number from 0 to 2147483647")

    def check_rows(self) -> None:
        if len(self.prompts) != self.batch_size:
            raise ConfigError(
                "workload.prompts", f"{len(self.prompts)} prompts", f"one for each of batch_size={self.batch_size}"
            )
        if len({len(row) for row in self.prompts}) > 1 or not self.prompts[0]:
            lengths = ", ".join(str(len(row)) for row in self.prompts)
            raise ConfigError("workload.prompts", f"prompts of {lengths} tokens", "one length, of a token at least")
        if self.same_prompt and any(row != self.prompts[0] for row in self.prompts):
            raise self.error("same_prompt", "false beside workload.prompts that differ")


@dataclass(kw_only=True)
class TaskConfig(Section):
    """What is measured: speed, and nothing beside it."""

    GROUP: ClassVar[str] = "task"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Speed",)

    breakdown: bool = False
    """Profile a few decode steps after the samples, and tell where the time of one goes, kernel by kernel."""
    energy: bool = False
    """Measure joules per token of prefill and decode after the samples, where the device counts them; takes seconds."""


@dataclass(kw_only=True)
class QualityConfig(TaskConfig):
    """Beside speed, how well the engine predicts a text, and how far it is from the reference."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Quality",)

    text_file: str | None = None
    """Held-out text, in UTF-8; null is the one that the demo model never saw."""
    tokens: int = 2048
    """Tokens of the text that are predicted, rounded down to whole generations of the workload's length."""
    reference: bool = True
    """Whether to compare with the unquantised model in bfloat16 under the eager engine."""

    def check(self) -> None:
        self.within(1, MAX_TOKENS, "tokens")


@dataclass(kw_only=True)
class KernelsConfig(TaskConfig):
    """Single kernels instead of generations: each at every shape of the model, and the seed's micro-benchmarks.

    No weights are made. Of the workload, the batch size counts, and for the model's kernels prompt and new tokens.
    """

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.task.Kernels",)

    only: str | None = None
    """Measure only what has this in its name, from the beginning of a part on: `gemv`, `D4096/int8`; null is all."""
    sizes: list[int] = field(default_factory=lambda: [1024, 4096, 8192, 16384])
    """D of the micro-benchmarks."""
    replays: int = 20
    """Timed repetitions of a round over all sets of inputs; the median counts."""

    def check(self) -> None:
        for name in ("breakdown", "energy"):
            if getattr(self, name):
                raise self.error(name, "false with task=kernels, which decodes nothing")
        if not self.sizes or min(self.sizes) < 1:
            raise self.error("sizes", "some numbers of at least 1")
        if len(set(self.sizes)) < len(self.sizes):
            raise self.error("sizes", "each number once")
        if max(self.sizes) > MAX_WIDTH:
            raise self.error("sizes", f"numbers up to {MAX_WIDTH}")
        self.within(1, MAX_SAMPLES, "replays")


@dataclass(kw_only=True)
class TrackingConfig(Section):
    """Where results are logged, beside result.json."""

    GROUP: ClassVar[str] = "tracking"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.record.NoTracker",)


@dataclass(kw_only=True)
class MLflowConfig(TrackingConfig):
    """MLflow: an embedded SQLite store, or any tracking server."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.record.MLflowTracker",)

    uri: str | None = None
    """Tracking server or store; null is sqlite in the outputs folder."""
    experiment: str = "gptbench"
    """MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the run, or null for one made of model, quantisation and engine."""
    timeout_s: float = 10.0
    """Seconds a request to a tracking server may take."""
    retries: int = 2
    """How often a failed request is tried again."""
    figures: bool = True
    """Whether the report\'s charts of a run, or of the jobs of a sweep together, are drawn and logged with it."""

    def check(self) -> None:
        remember(self.uri)
        if self.uri and (expected := unusable_address(self.uri)) is not None:
            raise ConfigError("tracking.uri", HIDDEN, expected)
        if not self.experiment:
            raise self.error("experiment", "a name")
        if not 0 < self.timeout_s <= MAX_SECONDS:
            raise self.error("timeout_s", f"a number of seconds over 0, up to {MAX_SECONDS}")
        if not 0 <= self.retries <= 10:
            raise self.error("retries", "a number from 0 to 10")


@dataclass(kw_only=True)
class SweepConfig(Section):
    """Which jobs a sweep has (`-m`), and what becomes of those that are recorded or fail. This one takes the full
    product of all lists."""

    GROUP: ClassVar[str] = "sweep"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Product",)

    paired: list[str] = field(default_factory=list)
    """Overrides whose lists go together, first with first and so on: sampling.top_k, sampling.temperature."""
    resume: bool = False
    """Do not run again what is recorded with the same configuration, code and device; and go on with the last sweep
    over the same jobs."""
    timeout_s: float | None = None
    """Seconds after which a job is ended and counts as failed, or null for no limit. Needs isolation=process."""

    def check(self) -> None:
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_SECONDS:
            raise self.error("timeout_s", f"a number of seconds over 0, up to {MAX_SECONDS}, or null for no limit")
        if len(self.paired) == 1 or len(set(self.paired)) < len(self.paired):
            raise self.error("paired", "two overrides or more that are swept, each once")


@dataclass(kw_only=True)
class DrawnSweepConfig(SweepConfig):
    """Some points of the space that lists, ranges and intervals span: random ones, or those of a Sobol sequence, which
    fill it more evenly."""

    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sweep.Random", "gptbench.sweep.Sobol")

    jobs: int = MISSING
    """How many points are drawn; no two are the same."""
    seed: int = 0
    """Of the drawing."""

    def check(self) -> None:
        super().check()
        self.within(1, MAX_JOBS, "jobs")
        if not 0 <= self.seed < 2**31:
            raise self.error("seed", "a number from 0 to 2147483647")


@dataclass(kw_only=True)
class BaselineMetric:
    """One metric of a row of a baseline."""

    value: float = MISSING
    """Geometric mean, in the metric's unit; of quality, the first run's own number."""
    spread: float = 0.0
    """Standard deviation of the logarithms; 0 also where there is one value."""
    count: int = 1
    """How many values there were."""
    of: str = "runs"
    """What they were: runs, samples (of one run) or tokens (of a text)."""


@dataclass(kw_only=True)
class BaselineRow:
    """One configuration that a baseline has numbers of."""

    overrides: list[str] = field(default_factory=list)
    """Command line that measures it."""
    config: dict[str, Any] = field(default_factory=dict)
    """What was measured, by dotted field: a run with the same is the row's (see `gptbench.compare.baseline`)."""
    metrics: dict[str, BaselineMetric] = field(default_factory=dict)
    """Metric name to what was measured."""
    throttled: str | None = None
    """How many of its samples were held back by power or heat, in words; null where none was."""
    busy: str | None = None
    """Why the machine was busy with something else when it was measured, in words; null where it was not."""
    busy_kinds: list[str] = field(default_factory=list)
    """Kinds of metrics that this changes: speed, compile, energy; empty is all of them."""


@dataclass(kw_only=True)
class BaselineConfig(Section):
    """Recorded targets, shown beside what is measured. Never compared as if from the same device.

    `gptbench gate --record` writes one with rows; one of published figures has targets alone.
    """

    GROUP: ClassVar[str] = "baseline"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.compare.Baseline",)

    device: str = MISSING
    """Device that the targets were recorded on."""
    targets: dict[str, dict[str, float]] = field(default_factory=dict)
    """`model/weights` (``llama2_7b/int8``) to metric name to target, in the metric's unit."""
    power_limit_w: float | None = None
    """Of that device, in watts; null where it has none, or it is not known."""
    cores: int | None = None
    """Of a CPU, those that the runs could use; null for a GPU."""
    driver: str | None = None
    """Of a GPU."""
    commit: str | None = None
    """Of gptbench."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of libraries."""
    recorded: str | None = None
    """Day of the last run."""
    schema_version: int = 1
    """Which definitions its numbers are of: 1, percentiles of decode steps are the median of the samples' own; 2, they
    are of the steps of all samples together. Percentiles of version 1 are held against nothing."""
    read_roof_gb_per_s: float | None = None
    """Of that device, in GB/s."""
    margins: dict[str, float] = field(default_factory=dict)
    """Kind of metric (speed, compile, memory, quality, energy) to the share by which it may be worse, where that is not
    gptbench's own."""
    rows: dict[str, BaselineRow] = field(default_factory=dict)
    """What was recorded, by name."""

    def check(self) -> None:
        for kind, margin in self.margins.items():
            if not 0 <= margin < math.inf:  # nor NaN
                raise ConfigError(f"baseline.margins.{kind}", margin, "a share of at least 0, such as 0.01")
        if self.schema_version not in (1, 2):
            raise ConfigError("baseline.schema_version", self.schema_version, "1 or 2")
        for name, row in self.rows.items():
            for metric, found in row.metrics.items():
                place = f"baseline.rows.{name}.metrics.{metric}"
                if not 0 < found.value < math.inf:
                    raise ConfigError(f"{place}.value", found.value, "a number over 0")
                if not 0 <= found.spread < math.inf:
                    raise ConfigError(f"{place}.spread", found.spread, "a number of at least 0")
                if found.count < 1:
                    raise ConfigError(f"{place}.count", found.count, "a number of at least 1")


@dataclass(kw_only=True)
class Config:
    """One run."""

    model: ModelConfig = MISSING
    quant: QuantConfig = MISSING
    sampling: SamplingConfig = MISSING
    device: DeviceConfig = MISSING
    engine: EngineConfig = MISSING
    workload: WorkloadConfig = MISSING
    task: TaskConfig = MISSING
    tracking: TrackingConfig = MISSING
    baseline: BaselineConfig = MISSING
    sweep: SweepConfig = MISSING
    isolation: Isolation = Isolation.none
    """none or process: whether each job runs in a process of its own."""
    outputs: str = "outputs"
    """Folder for results, the MLflow store and measured roofs."""
    quiet: bool = False
    """Tell people nothing but what went wrong, as `--quiet` does; the line for programs stays."""
    commit: str | None = None
    """Commit of the code, where it is no checkout or the checkout does not tell; null asks git."""

    def __post_init__(self) -> None:
        if not self.outputs:
            raise ConfigError("outputs", self.outputs, "a folder")
        if self.sweep.timeout_s is not None and self.isolation is not Isolation.process:
            raise ConfigError("sweep.timeout_s", self.sweep.timeout_s, "null, or isolation=process beside it")
        rows = self.workload.prompts or [self.workload.prompt]
        prompt = max(1, len(rows[0]), self.workload.prompt_length or 0)
        if prompt + MIN_NEW_TOKENS > self.model.context:
            most = max(0, self.model.context - MIN_NEW_TOKENS)
            room = f"at most {most}: the context of {self.model.name} is {self.model.context}"
            if self.workload.prompt_length:
                raise ConfigError("workload.prompt_length", self.workload.prompt_length, room)
            raise ConfigError(
                "workload.prompt", f"{prompt} tokens", f"{room}; of a text, workload.prompt_length cuts it"
            )
        if prompt + self.workload.new_tokens > self.model.context:
            raise ConfigError(
                "workload.new_tokens",
                self.workload.new_tokens,
                f"at most {self.model.context - prompt}: the prompt has "
                f"{prompt} tokens and the context of {self.model.name} is {self.model.context}",
            )
        for token in itertools.chain(*rows):
            if not 0 <= token < self.model.vocab_size:
                field = "workload.prompts" if self.workload.prompts else "workload.prompt"
                raise ConfigError(
                    field, token, f"token ids from 0 to {self.model.vocab_size - 1} for {self.model.name}"
                )
        if self.sampling.top_k is not None and self.sampling.top_k > self.model.vocab_size:
            name, top_k = self.sampling.name, self.sampling.top_k
            default = f" (sampling={name} has {top_k})" if shipped("sampling", name).get("top_k") == top_k else ""
            expected = (
                f"at most vocab_size={self.model.vocab_size} of {self.model.name}, or null for all of it{default}"
            )
            raise ConfigError("sampling.top_k", top_k, expected)
        for token in self.sampling.stop_tokens:
            if not 0 <= token < self.model.vocab_size:
                raise ConfigError(
                    "sampling.stop_tokens",
                    token,
                    f"token ids from 0 to {self.model.vocab_size - 1} for {self.model.name}",
                )


# Hydra makes its folder before we see the configuration: `outputs=` must not put it into the root.
OmegaConf.register_new_resolver("gptbench.folder", lambda outputs: expanded(outputs or "outputs"), replace=True)
# A checkpoint that comes with gptbench, wherever that is installed.
OmegaConf.register_new_resolver("gptbench.shipped", lambda name: str(shipped_folder() / name), replace=True)


def register() -> None:
    """Stores the dataclasses as Hydra schemas, so that a wrong key or type is refused while composing."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="schema/engine", name="auto", node=AutoConfig)
    store.store(group="schema/engine", name="eager", node=EagerConfig)
    store.store(group="schema/engine", name="inductor", node=InductorConfig)
    store.store(group="schema/engine", name="fused", node=FusedConfig)
    store.store(group="schema/engine", name="hf", node=HuggingFaceConfig)
    store.store(group="schema/task", name="quality", node=QualityConfig)
    store.store(group="schema/task", name="kernels", node=KernelsConfig)
    store.store(group="schema/tracking", name="mlflow", node=MLflowConfig)
    store.store(group="schema/sweep", name="drawn", node=DrawnSweepConfig)


def refuse_unknown(node: DictConfig, path: str = "") -> None:
    """Raises ConfigError for a key that no dataclass has: Hydra's `+key=value` adds such keys past the schema."""
    known = OmegaConf.get_type(node)
    if not is_dataclass(known):
        return
    for key in map(str, node):
        if key not in {entry.name for entry in fields(known)}:
            raise UserError(no_such_field(f"{path}{key}", known))
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            refuse_unknown(node[key], f"{path}{key}.")


PATHS = ("outputs", "model.tokenizer", "engine.tiles", "workload.prompt_file", "task.text_file")
"""Fields that name a file or a folder, in which `~` is the home folder; `model.checkpoint` may be more than that."""


def expand_paths(composed: DictConfig) -> None:
    """Puts the home folder in the place of `~`, in place."""
    for name in PATHS:
        value = OmegaConf.select(composed, name)
        if isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(composed, name, expanded(value))


def complete_model(model: DictConfig, given: Container[str] = ()) -> None:
    """Takes what the model's section leaves open from its checkpoint's `config.json`, in place.

    Where a field without a default is open, as all are in `model=auto`, so is every field that has its default and was
    not `given` on the command line. The context is the shorter of both: it is no shape of any weight. A `given` one may
    be as long as linear scaling stretches the file's: some files state the context before it, others the one behind.

    Raises:
        UserError: the file cannot be read, is of a model that gptbench does not have, or disagrees with the section.
    """
    missing = {str(key) for key in model if OmegaConf.is_missing(model, key)}
    if model.checkpoint:
        model.checkpoint = find_checkpoint(model.checkpoint)
    if model.checkpoint is None:
        if "name" in missing:
            raise ConfigError("model.checkpoint", "null", "the folder of a checkpoint, which tells what model it is")
        return
    if not model.checkpoint:
        raise ConfigError("model.checkpoint", "", "the folder of a checkpoint, or null")
    if Path(model.checkpoint).is_file() and (said := of_checkpoint(model.checkpoint)) is not None:
        raise UserError(f"model.checkpoint={model.checkpoint}: {said}")
    file = Path(model.checkpoint) / CONFIG_FILE
    defaults = {entry.name: entry.default for entry in fields(ModelConfig)} if missing else {}
    shape = read_shape(file.parent)
    for key, value in shape.items():
        if key in missing or (key not in given and model[key] == defaults.get(key, MISSING)):
            model.merge_with({key: value})  # makes a RopeScaling of a dict, as assigning would not
        stated = model[key]
        if key == "context":
            longest = max(value, stretched_context(shape)) if key in given else value
            if key in given and stated > longest:
                raise ConfigError("model.context", stated, f"at most {longest}, as {file} has it")
            model[key] = stated = value = min(stated, longest)
        if key == "head_dim" and not stated:
            stated = model.dim // max(1, model.n_heads)
        if key != "name" and stated != value:
            raise ConfigError(f"model.{key}", stated, f"{value}, as {file} has it (model=auto takes all from it)")


def load(composed: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The validated tree for what Hydra composed. What a checkpoint says of its model is filled in there, too.

    Args:
        overrides: the command line's, as they were typed.

    Raises:
        UserError: a field is missing, unknown, or holds what it cannot.
    """
    try:
        return read_whole(composed, overrides)
    except OmegaConfBaseException as error:  # an interpolation is resolved only when its value is read
        raise UserError(explain(error)) from error


def read_whole(composed: DictConfig, overrides: Sequence[str]) -> Config:
    """`load`, where every value can be resolved. Raises OmegaConfBaseException where one cannot."""
    for section in fields(Config):
        if section.name not in composed:
            raise UserError(f"~{section.name}: nothing runs without a section {section.name}")
    refuse_unknown(composed)
    expand_paths(composed)
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    complete_model(composed.model, {name.removeprefix("model.") for name in given if name.startswith("model.")})
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(missing[0], "???", "a value")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    if not isinstance(config.task, KernelsConfig):  # which leaves out what cannot be, and says why
        require_possible(config)
    return config


def require_possible(config: Config) -> None:
    """Raises ConfigError for a run that its engine or its quantisation cannot do, as far as the configuration tells."""
    if (expected := config.quant.refuse(config.model, config.device.dtype)) is not None:
        raise ConfigError("quant", f"{config.quant.name} (model={config.model.name})", expected)
    if (expected := config.engine.refuse(config)) is not None:
        raise ConfigError("engine", config.engine.name, f"another one, or {expected}")
    if isinstance(config.engine, FusedConfig) and config.device.kind is DeviceKind.cpu:
        raise ConfigError("engine", config.engine.name, "another one, or device.kind=cuda: its kernels need a GPU")


def options(group: str, schema: type[S]) -> list[S]:
    """Every option of a group that gptbench ships and that needs nothing more, by name."""
    files = sorted((conf_folder() / group).glob("*.yaml"))
    sections = [OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.load(file)) for file in files]
    return [cast(S, OmegaConf.to_object(section)) for section in sections if not OmegaConf.missing_keys(section)]


def shipped(group: str, name: str) -> dict[str, Any]:
    """The values of an option that gptbench ships; empty where it ships no such option."""
    file = conf_folder() / group / f"{name}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file)) if is_name(name) and file.exists() else {}
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def explain(error: Exception) -> str:
    """What a composing error means, in the words of `ConfigError`: field, value, choices."""
    cause: BaseException | None = error
    seen: list[BaseException] = []  # contexts can lead back to where they came from
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__  # Hydra hides the cause of what is wrong in a file
        cause = None if isinstance(error, UserError) or any(cause is each for each in seen) else cause
    if isinstance(cause, InterpolationResolutionError | GrammarParseError):
        return unresolved(cause)
    if cause is None or not cause.full_key:
        return str(error).partition("\nConfig search path:")[0]
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and is_dataclass(cause.object_type):
        return no_such_field(cause.full_key, cause.object_type)
    return f"{cause.full_key}: {str(cause.msg).splitlines()[0]}"


def unresolved(error: OmegaConfBaseException) -> str:
    """Message for an interpolation that gives no value."""
    why = str(error.msg or error).splitlines()[0]
    given = None
    if error.parent_node is not None and OmegaConf.is_config(error.parent_node) and error.key is not None:
        given = OmegaConf.to_container(cast(DictConfig, error.parent_node), resolve=False)[error.key]  # type: ignore[index]
    where = f"{error.full_key}={given}" if given is not None else error.full_key or str(error.value or "")
    hint = r"${ begins an interpolation; where the text itself is meant, write \${"
    return f"{where}: expected a value that can be resolved ({why}); {hint}"


def no_such_field(path: str, schema: Any) -> str:
    """Message for a key that a dataclass does not have."""
    return f"{path}: no such field; the fields are {', '.join(entry.name for entry in fields(schema))}"
