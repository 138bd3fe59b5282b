"""The `quant` group: how the weights are stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gptbench.config.device import Dtype
from gptbench.config.model import ModelConfig
from gptbench.config.section import Section


@dataclass(frozen=True)
class FormatLimits:
    """What a format of weights asks of a run: known before torch, and with it the format itself, is imported."""

    multiple: int = 1
    """The number of columns of each matrix must be a multiple of it."""
    float16: str | None = None
    """Why activations cannot be float16, or None if they can."""
    fused: bool = True
    """Whether it has the device functions that engine=fused needs."""

    def refuse(self, widths: Iterable[tuple[str, int]]) -> str | None:
        """What would have to be different for matrices of these columns, each with its name, or None if nothing."""
        for name, width in widths:
            if width % self.multiple:
                return f"a model whose {name} is a multiple of {self.multiple} (it is {width})"
        return None


UNQUANTISED, INT8 = "gptbench.quant.Unquantised", "gptbench.quant.Int8"


@dataclass(kw_only=True)
class QuantConfig(Section):
    """How the weights are stored. `_target_` is a `gptbench.quant.WeightFormat`, which has no options of its own."""

    GROUP: ClassVar[str] = "quant"
    TARGETS: ClassVar[tuple[str, ...]] = (UNQUANTISED, INT8)
    LIMITS: ClassVar[dict[str, FormatLimits]] = {
        UNQUANTISED: FormatLimits(),
        # A row is a whole number of the widest loads, which are 16 bytes.
        INT8: FormatLimits(multiple=16, float16="sums of unscaled products may pass float16's 65504"),
    }
    """What each of the targets asks."""

    @classmethod
    def add(cls, target: str, limits: FormatLimits) -> None:
        """Lists a format of a plugin's."""
        cls.TARGETS = tuple(dict.fromkeys((*cls.TARGETS, target)))
        cls.LIMITS[target] = limits

    @property
    def limits(self) -> FormatLimits:
        return self.LIMITS[self._target_]

    def refuse(self, model: ModelConfig, dtype: "Dtype") -> str | None:
        """What would have to be different for a model to be stored in this way, or None if nothing."""
        if dtype is Dtype.float16 and self.limits.float16 is not None:
            return f"device.dtype=bfloat16 or float32: {self.limits.float16}"
        attended = model.n_heads * model.head_dim
        return self.limits.refuse([("dim", model.dim), ("ffn_dim", model.ffn_dim), ("n_heads·head_dim", attended)])
