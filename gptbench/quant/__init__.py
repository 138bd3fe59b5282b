"""How weights are stored. One file and one class for each way."""

from gptbench.quant.base import Quantisation, Unquantised
from gptbench.quant.int8 import Int8

__all__ = ["Int8", "Quantisation", "Unquantised"]
