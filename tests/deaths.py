"""Deaths of a second process, which imports nothing else for them."""

import os
import signal


def raises(_: object) -> None:
    raise ValueError("no memory left")


def is_killed(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
