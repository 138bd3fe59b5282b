"""Reads RoPE settings from a config.json. Version 5 of transformers writes `rope_parameters`, earlier ones
`rope_theta` and `rope_scaling`."""

from typing import Any

from gptbench.architecture.config_json import ConfigFile

ROPE_TYPES = ("default", "linear", "llama3")
LINEAR = 1
"""Original context that stands for linear scaling: every wavelength is longer, so all are stretched in full."""


def rope(file: ConfigFile) -> tuple[float, dict[str, Any] | None]:
    """Return the base of the rotary wavelengths, and the fields of `RopeScaling` or None.

    Raises:
        CheckpointError: the settings are malformed, unsupported, or contradict each other.
    """
    sections = {key: file.values[key] for key in ("rope_parameters", "rope_scaling") if file.values.get(key)}
    settings = [parse_rope(file, parameters) for parameters in sections.values()]
    if settings[1:] and settings[0] != settings[1]:
        raise file.error("rope_scaling", sections["rope_scaling"], "null, or the same as rope_parameters")
    return settings[0] if settings else parse_rope(file, {})


def parse_rope(file: ConfigFile, parameters: Any) -> tuple[float, dict[str, Any] | None]:
    """Parse one object of RoPE settings; returns and raises as `rope` does."""
    values = file.values
    if not isinstance(parameters, dict):
        raise file.error("rope_scaling", parameters, "an object")
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise file.error(
                f"rope_parameters.{key}", value, "no object: gptbench supports only one RoPE for all layers"
            )
    theta = file.number(parameters if "rope_theta" in parameters else values, "rope_theta", 10000.0)
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise file.error("partial_rotary_factor", parameters["partial_rotary_factor"], "1: gptbench supports no other")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise file.error("rope_type", kind, f"one of {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return theta, None
    scaling = {"factor": file.number(parameters, "factor"), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "linear":
        if theta < 1:
            raise file.error("rope_theta", theta, "a number of at least 1 with rope_type=linear")
        return theta, scaling | {"original_context": LINEAR}
    key = "original_max_position_embeddings"  # transformers prefers the one outside the object
    original = values.get(key, parameters.get(key, file.integer("max_position_embeddings")))
    if isinstance(original, bool) or not isinstance(original, int) or not 0 < original <= 2**24:
        raise file.error(key, original, f"a whole number from 1 to {2**24}")
    return theta, scaling | {
        "low_freq_factor": file.number(parameters, "low_freq_factor"),
        "high_freq_factor": file.number(parameters, "high_freq_factor"),
        "original_context": original,
    }
