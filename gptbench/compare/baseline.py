"""Recorded targets of some device, to be shown beside what was measured."""

from gptbench.config import BaselineConfig, shipped
from gptbench.record import Result


class Baseline:
    """Targets by model, type of weights and metric.

    Attributes:
        device: what they were recorded on.
    """

    def __init__(self, config: BaselineConfig) -> None:
        self.config, self.device = config, config.device

    def targets(self, result: Result) -> dict[str, float]:
        """Metric to target for the model and weights of a result; empty where there are none.

        Targets are for the shapes that gptbench ships and the seed's workload: a result with another depth, prompt,
        length or batch has none.
        """
        model = result.config["model"]["name"]
        if not (is_shipped(result, "model", model) and is_shipped(result, "workload", "seed", COUNTS)):
            return {}
        if result.prompt != shipped("workload", "seed")["prompt"]:
            return {}
        quant = result.config["quant"]["name"]
        weights = result.dtype if quant == "none" else quant
        return self.config.targets.get(f"{model}/{weights}", {})


COUNTS = ("new_tokens", "batch_size")
"""Of a workload, what a target depends on beside the prompt."""


def is_shipped(result: Result, group: str, name: str, keys: tuple[str, ...] | None = None) -> bool:
    """Whether a group of a result has the values of the option that gptbench ships under that name."""
    values = shipped(group, name)
    return bool(values) and all(result.config[group].get(key) == values[key] for key in keys or values)
