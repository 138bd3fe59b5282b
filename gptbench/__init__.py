"""gptbench: how fast a GPT decodes on this machine, against the physical limit of the same machine."""

import os

__version__ = "0.1.0"
STARTED_WITH = dict(os.environ)
"""Environment variables that this process began with: libraries add some of their own when they are imported."""
