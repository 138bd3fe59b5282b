"""gptbench measures how fast a GPT decodes on this machine, compared with the machine's memory bandwidth limit."""

import os

__version__ = "0.1.0"
STARTED_WITH = dict(os.environ)
"""Environment variables with which this process started; libraries add more when they are imported."""
