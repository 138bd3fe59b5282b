"""gptbench: how fast a GPT decodes on this machine, against the physical limit of the same machine."""

__version__ = "0.1.0"
