"""The decode steps of a sample, from which all of its rates, times per output token and bytes follow.

A step may emit a different number of tokens for each row: several if drafts are accepted, none if the row has ended.
"""

from collections.abc import Sequence

import numpy as np

from gptbench.schema.sample import Sample, Traffic


class Steps:
    """N decode steps for B rows, in order.

    Attributes:
        seconds: float64 [N]: seconds of each step.
        tokens: int64 [N, B]: number of tokens that each step emitted for each row.
        positions: int64 [N, B]: number of tokens that earlier steps had emitted for each row: the index, in the lists
            of `Traffic`, of the token that the row is fed.
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
        """Mean number of tokens that a step emitted, for all rows together."""
        return int(self.tokens.sum()) / len(self.seconds)

    @property
    def output_s(self) -> np.ndarray:
        """Seconds per output token, one value per token: the time since the row last got tokens, over the number that
        it then got. If all rows get equally many tokens in every step, their times are equal, and are returned once."""
        alike = bool((self.tokens == self.tokens[:, :1]).all())
        return np.concatenate([self.waits(row) for row in (self.tokens.T[:1] if alike else self.tokens.T)])

    def waits(self, tokens: np.ndarray) -> np.ndarray:
        """Return the seconds per output token of a row that got that many tokens, [N], from each step."""
        emitting = np.flatnonzero(tokens)
        if not len(emitting):
            return np.empty(0)
        begin = np.concatenate(([0], emitting[:-1] + 1))
        waited = np.add.reduceat(self.seconds[: emitting[-1] + 1], begin)
        return np.repeat(waited / tokens[emitting], tokens[emitting])

    def needed(self, traffic: Traffic) -> np.ndarray:
        """Return the minimum bytes of each step, int64 [N]: see `Traffic.needed`."""
        return self.of_rows(traffic.needed(self.sample.experts_chosen, len(self.seconds)))

    def moved(self, traffic: Traffic) -> np.ndarray:
        """Return the bytes that each step reads and writes, int64 [N]: see `Traffic.moved`."""
        return self.of_rows(traffic.moved(self.sample.experts_read, len(self.seconds)))

    def weights(self, traffic: Traffic) -> int:
        """Return the mean bytes of weights that a step needs."""
        return traffic.weights_with(self.sample.experts_chosen, len(self.seconds))

    def of_rows(self, by_position: Sequence[int]) -> np.ndarray:
        """Return the mean over the rows of a value per position, int64 [N]."""
        values = np.asarray(by_position)[np.minimum(self.positions, len(by_position) - 1)]
        return np.rint(values.mean(axis=1)).astype(np.int64)

    def at_positions(self, count: int) -> np.ndarray:
        """Return the seconds of the step that filled each of the first positions, mean over the rows, float64
        [count]."""
        filled = self.positions.mean(axis=1)
        return self.seconds[np.searchsorted(filled, np.arange(count), side="right") - 1]


def output_times(samples: Sequence[Sample]) -> list[np.ndarray]:
    """Return the seconds per output token of each sample's decode steps."""
    return [Steps(sample).output_s for sample in samples]


def decode_rate(sample: Sample) -> float:
    """Return the tokens/s of all decode steps."""
    return Steps(sample).tokens_per_s
