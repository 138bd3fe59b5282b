"""Quantised checkpoints: which codec decodes them."""

from typing import Any

from gptbench.architecture.config_json import ConfigFile

CODECS: dict[str, str] = {}
"""Registered codecs: MODULE.CLASS of a `gptbench.checkpoint.Codec`, by the `quant_method` in config.json."""

KEY = "quantization_config"


def quantisation(file: ConfigFile) -> dict[str, Any] | None:
    """Return the `quantization_config` of a config.json; None if the checkpoint stores plain floats.

    Raises:
        CheckpointError: no codec is registered for it.
    """
    settings = file.values.get(KEY)
    if settings is None:
        return None
    if not isinstance(settings, dict) or settings.get("quant_method") not in tuple(CODECS):  # it may be any JSON
        others = f", or quant_method one of {', '.join(CODECS)}" if CODECS else ""
        raise file.error(KEY, settings, f"null{others}: gptbench supports no other")
    return settings
