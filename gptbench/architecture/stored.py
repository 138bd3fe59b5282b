"""How a checkpoint's numbers may be stored, other than as floats."""

from typing import Any

from gptbench.architecture.config_json import ConfigFile

CODECS: dict[str, str] = {}
"""What reads them, MODULE.CLASS of a `gptbench.checkpoint.Codec`, by the `quant_method` that config.json names."""

KEY = "quantization_config"


def quantisation(file: ConfigFile) -> dict[str, Any] | None:
    """What a config.json says of how the numbers are stored; None of plain floats.

    Raises:
        CheckpointError: no codec reads them.
    """
    given = file.values.get(KEY)
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("quant_method") not in tuple(CODECS):  # it may be any JSON
        others = f", or quant_method one of {', '.join(CODECS)}" if CODECS else ""
        raise file.error(KEY, given, f"null{others}: gptbench has no other")
    return given
