"""Weight formats: how weights are stored. One file and one class for each format."""

from gptbench.quant.base import WeightFormat, register_format
from gptbench.quant.int8 import Int8
from gptbench.quant.none import Unquantised

__all__ = ["Int8", "Unquantised", "WeightFormat", "register_format"]
