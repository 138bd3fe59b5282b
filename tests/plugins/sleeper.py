"""An engine that is another process: it answers a line of JSON with a line for each token, after a pause for each.

What it draws are random numbers: it shows how a server, or a library with a model of its own, is measured.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gptbench.config import Config, EngineConfig
from gptbench.device.group import DeviceGroup
from gptbench.engine import Runner, register_engine
from gptbench.engine.runner import Tick
from gptbench.model import Transformer

SERVER = """
import json, random, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    numbers = random.Random(asked["seed"])
    for step in range(asked["tokens"]):
        time.sleep(asked["step_ms"] / 1e3)
        print([numbers.randrange(asked["vocabulary"]) for _ in range(asked["rows"])], flush=True)
"""


@dataclass(kw_only=True)
class SleeperConfig(EngineConfig):
    """A process that sleeps."""

    step_ms: float = 2.0
    """Milliseconds that each token takes."""

    def check(self) -> None:
        self.at_least(0, "step_ms")

    def unsupported_reason(self, config: Config) -> str | None:
        return "sampling.stop_tokens=[]: it stops at none" if config.sampling.stop_tokens else None


class Sleeper(Runner):
    """Asks a process of Python's."""

    def __init__(self, config: Config, model: Transformer, devices: DeviceGroup) -> None:
        super().__init__(config, model, devices)
        assert isinstance(config.engine, SleeperConfig)
        self.step_ms, self.vocabulary = config.engine.step_ms, config.model.vocab_size
        self.random_seed, self.drawn = 0, list[Sequence[int]]()

    def prepare(self) -> None:
        command = [sys.executable, "-c", SERVER]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seed(self, seed: int) -> None:
        self.random_seed = seed

    def generate(self, prompt: Tensor, new_tokens: int, tick: Tick) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"tokens": new_tokens, "rows": len(prompt), "vocabulary": self.vocabulary}
        tick(0)
        print(
            json.dumps(asked | {"seed": self.random_seed, "step_ms": self.step_ms}), file=self.process.stdin, flush=True
        )
        self.drawn = []
        for number in range(1, new_tokens + 1):
            self.drawn.append(json.loads(self.process.stdout.readline()))
            tick(number)

    def tokens(self, new_tokens: int) -> list[list[int]]:
        return [list(row) for row in zip(*self.drawn[:new_tokens], strict=True)]

    def details(self) -> dict[str, Any]:
        return {"pid": self.process.pid}

    def release(self) -> None:
        self.process.kill()
        self.process.communicate()


register_engine("sleeper", SleeperConfig, Sleeper)
