"""Loads checkpoints: container (file format) × layout (tensor names, by architecture) × codec (numbers)."""

from gptbench.checkpoint.codec import FLOATS, Codec, Piece, codec_of, register_codec
from gptbench.checkpoint.container import Container, TensorInfo
from gptbench.checkpoint.place import assign, view
from gptbench.checkpoint.reader import CONTAINERS, Checkpoint

__all__ = [
    "CONTAINERS",
    "FLOATS",
    "Checkpoint",
    "Codec",
    "Container",
    "Piece",
    "TensorInfo",
    "assign",
    "codec_of",
    "register_codec",
    "view",
]
