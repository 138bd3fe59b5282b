"""The decode steps of a sample. Every rate, time per output token and byte of a sample follows from them.

A step may give each row another number of tokens: several where drafts are accepted, none where the row has ended.
"""

from collections.abc import Sequence

import numpy as np

from gptbench.schema.sample import Sample, Traffic


class Steps:
    """N decode steps for B rows, in their order.

    Attributes:
        seconds: float64 [N]: of each step.
        tokens: int64 [N, B]: emitted by each step for each row.
        positions: int64 [N, B]: tokens that the steps before had emitted for each row: the place, in the lists of
            `Traffic`, of the token that the row is fed.
    """

    def __init__(self, sample: Sample) -> None:
        self.sample, shape = sample, (len(sample.step_s), len(sample.tokens))
        self.seconds = np.asarray(sample.step_s)
        self.tokens = np.asarray(sample.step_tokens) if sample.step_tokens else np.ones(shape, dtype=np.int64)
        self.positions = np.cumsum(self.tokens, axis=0) - self.tokens

    @property
    def total_s(self) -> float:
        """Seconds of all steps."""
        return sum(self.sample.step_s)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that all steps emitted, for all rows, over the time of all steps."""
        return int(self.tokens.sum()) / self.total_s

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step emitted on average, for all rows together."""
        return int(self.tokens.sum()) / len(self.seconds)

    @property
    def output_s(self) -> np.ndarray:
        """Seconds per output token, one value for each token: what a row waited since it last got any, over as many as
        it then got. Rows that always got as many as each other wait alike, and count once."""
        alike = bool((self.tokens == self.tokens[:, :1]).all())
        return np.concatenate([self.waits(row) for row in (self.tokens.T[:1] if alike else self.tokens.T)])

    def waits(self, tokens: np.ndarray) -> np.ndarray:
        """`output_s` of a row that got so many tokens, [N], from each step."""
        given = np.flatnonzero(tokens)
        if not len(given):
            return np.empty(0)
        begin = np.concatenate(([0], given[:-1] + 1))
        waited = np.add.reduceat(self.seconds[: given[-1] + 1], begin)
        return np.repeat(waited / tokens[given], tokens[given])

    def needed(self, traffic: Traffic) -> np.ndarray:
        """int64 [N]: bytes that each step cannot do without, see `Traffic.needed`."""
        return self.of_rows(traffic.needed(self.sample.experts_chosen, len(self.seconds)))

    def moved(self, traffic: Traffic) -> np.ndarray:
        """int64 [N]: bytes that each step reads and writes, see `Traffic.moved`."""
        return self.of_rows(traffic.moved(self.sample.experts_read, len(self.seconds)))

    def weights(self, traffic: Traffic) -> int:
        """Bytes of weights that a step needs on average."""
        return traffic.weights_with(self.sample.experts_chosen, len(self.seconds))

    def of_rows(self, by_position: Sequence[int]) -> np.ndarray:
        """int64 [N]: the mean over the rows of what there is for each position."""
        found = np.asarray(by_position)[np.minimum(self.positions, len(by_position) - 1)]
        return np.rint(found.mean(axis=1)).astype(np.int64)

    def at_positions(self, count: int) -> np.ndarray:
        """float64 [count]: seconds of the step that filled each of the first positions, on average over the rows."""
        filled = self.positions.mean(axis=1)
        return self.seconds[np.searchsorted(filled, np.arange(count), side="right") - 1]


def output_times(samples: Sequence[Sample]) -> list[np.ndarray]:
    """Seconds per output token of each sample's decode steps."""
    return [Steps(sample).output_s for sample in samples]


def decode_rate(sample: Sample) -> float:
    """Tokens/s of all decode steps."""
    return Steps(sample).tokens_per_s
