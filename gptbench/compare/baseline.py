"""Recorded targets of some device, to be shown beside what was measured."""

from gptbench.config import BaselineConfig
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

        Targets are for a single sequence and the seed's prompt and length; another workload has none.
        """
        work = result.config["workload"]
        if work["batch_size"] != 1 or work["name"] != "seed":
            return {}
        quant = result.config["quant"]["name"]
        weights = result.dtype if quant == "none" else quant
        return self.config.targets.get(f"{result.config['model']['name']}/{weights}", {})
