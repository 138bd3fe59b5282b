"""`engine=eager`: the model's PyTorch code, one operation after the other. The reference for every other engine."""

from collections.abc import Sequence

from gptbench.config import EngineConfig
from gptbench.engine.base import Engine
from gptbench.model import KeyValueCache


class Eager(Engine):
    """Runs the model eagerly. Reads only the filled part of the cache, as the host knows how far the fullest row is
    filled."""

    @classmethod
    def serves_other_workloads(cls, config: EngineConfig) -> bool:
        return True

    def run_prefill(self) -> None:
        self.reset_to_prompt()
        hidden = self.model.hidden(self.prompt, self.prompt_positions, self.memory, self.filled)
        self.advance(hidden[:, -1])

    def run_decode(self) -> None:
        hidden = self.model.hidden(self.state.token, self.state.position, self.memory, self.filled)
        self.advance(hidden[:, -1])

    def positions_read(self, positions: Sequence[int], cache: KeyValueCache) -> int:
        return len(positions) * (max(positions) + 1)
