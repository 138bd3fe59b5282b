"""Model architectures, described without torch: one file per architecture, which adds a row to `ARCHITECTURES`.

A row says how a checkpoint's `config.json` becomes fields of `ModelConfig` or layers (`spec`), which tensors go where
(`layout`), and which class of the transformers library implements the same model.
"""

from gptbench.architecture import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe  # noqa: F401 -- each adds its row
from gptbench.architecture.config_json import CONFIG_FILE, ConfigFile, checkpoint_hint
from gptbench.architecture.keys import IGNORED_KEYS, READ_KEYS, SUPPORTED_VALUES
from gptbench.architecture.layout import LlamaLayer, OuterNames, Part, Target, layout
from gptbench.architecture.row import ARCHITECTURES, Architecture, Window, register_architecture
from gptbench.architecture.shape import MAX_NAME, model_name, read_architecture, read_shape, stretched_context
from gptbench.architecture.window import FULL, SLIDING

__all__ = [
    "ARCHITECTURES",
    "CONFIG_FILE",
    "FULL",
    "IGNORED_KEYS",
    "MAX_NAME",
    "READ_KEYS",
    "SLIDING",
    "SUPPORTED_VALUES",
    "Architecture",
    "ConfigFile",
    "LlamaLayer",
    "OuterNames",
    "Part",
    "Target",
    "Window",
    "checkpoint_hint",
    "layout",
    "model_name",
    "read_architecture",
    "read_shape",
    "register_architecture",
    "stretched_context",
]
