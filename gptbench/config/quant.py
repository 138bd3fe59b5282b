"""The `quant` group: how the weights are stored."""

from dataclasses import dataclass
from typing import ClassVar

from gptbench.config.device import Dtype
from gptbench.config.model import ModelConfig
from gptbench.config.section import Section
from gptbench.config.sizes import INT8_ALIGNMENT


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
