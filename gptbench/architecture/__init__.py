"""What there is to know of each architecture, without torch: a file for each, which is a row of `ARCHITECTURES`.

A row says how a checkpoint's `config.json` becomes fields of `ModelConfig` or layers (`spec`), which of its tensors go
where (`layout`), and which model of the transformers library it is.
"""

from gptbench.architecture import llama, mistral, mixtral, qwen2, qwen3, qwen3_moe  # noqa: F401 -- each adds its row
from gptbench.architecture.config_json import CONFIG_FILE, ConfigFile, of_checkpoint
from gptbench.architecture.keys import HONOURED, UNSUPPORTED, WITHOUT_EFFECT
from gptbench.architecture.layout import LlamaLayer, Outside, Part, Target, layout
from gptbench.architecture.row import ARCHITECTURES, Architecture, Window, register_architecture
from gptbench.architecture.shape import MAX_NAME, model_name, read_architecture, read_shape, stretched_context
from gptbench.architecture.window import FULL, SLIDING

__all__ = [
    "ARCHITECTURES",
    "CONFIG_FILE",
    "FULL",
    "HONOURED",
    "MAX_NAME",
    "SLIDING",
    "UNSUPPORTED",
    "WITHOUT_EFFECT",
    "Architecture",
    "ConfigFile",
    "LlamaLayer",
    "Outside",
    "Part",
    "Target",
    "Window",
    "layout",
    "model_name",
    "of_checkpoint",
    "read_architecture",
    "read_shape",
    "register_architecture",
    "stretched_context",
]
