"""Speed alone, and what every task is that measures a model."""

from collections.abc import Callable

from gptbench.config import Config, TaskConfig
from gptbench.engine import Engine
from gptbench.schema.quality import Predictions
from gptbench.text.tokenizer import Tokenizer


class Speed:
    """Nothing beside speed.

    Args:
        task: the task's section.
        config: the run's, with its prompt as tokens.
        tokenizer: the model's, or None.
    """

    stage: str | None = None
    """What the user is told while it is evaluated; None where there is nothing to do."""
    needs_reference = False
    """Whether `evaluate` makes the reference."""

    def __init__(self, task: TaskConfig, config: Config, tokenizer: Tokenizer | None) -> None:
        self.task, self.config = task, config

    def evaluate(self, engine: Engine, make_reference: Callable[[], Engine]) -> Predictions | None:
        """What there is to say of the quality of an engine that was prepared."""
        return None
