"""The task that measures speed only, and the base class of all tasks that run an engine."""

from collections.abc import Callable

from gptbench.config import Config, TaskConfig
from gptbench.engine import Engine
from gptbench.schema.quality import Predictions
from gptbench.text.tokenizer import Tokenizer


class Speed:
    """The task that measures nothing besides speed. Subclasses evaluate the engine after the samples.

    Args:
        task: task section of the configuration.
        config: configuration of the run, with the prompt as token ids.
        tokenizer: tokenizer of the model, or None.
    """

    stage: str | None = None
    """Description shown to the user during the evaluation; None if there is none."""
    needs_reference = False
    """Whether `evaluate` needs the reference engine."""

    def __init__(self, task: TaskConfig, config: Config, tokenizer: Tokenizer | None) -> None:
        self.task, self.config = task, config

    def evaluate(self, engine: Engine, make_reference: Callable[[], Engine]) -> Predictions | None:
        """Evaluate the quality of a prepared engine; None if the task does not."""
        return None
