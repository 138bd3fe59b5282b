"""What a config.json says of rotary embeddings; version 5 of the library writes `rope_parameters` where earlier ones
wrote `rope_theta` and `rope_scaling`."""

from typing import Any

from gptbench.architecture.config_json import ConfigFile

ROPE_TYPES = ("default", "linear", "llama3")
LINEAR = 1
"""Original context that stands for linear scaling: every wavelength is longer, so that all are stretched in full."""


def rope(file: ConfigFile) -> tuple[float, dict[str, Any] | None]:
    """Base of the rotary wavelengths, and fields of `RopeScaling` or None."""
    given = {key: file.values[key] for key in ("rope_parameters", "rope_scaling") if file.values.get(key)}
    readings = [rope_reading(file, parameters) for parameters in given.values()]
    if readings[1:] and readings[0] != readings[1]:
        raise file.error("rope_scaling", given["rope_scaling"], "what rope_parameters beside it says, or null")
    return readings[0] if readings else rope_reading(file, {})


def rope_reading(file: ConfigFile, parameters: Any) -> tuple[float, dict[str, Any] | None]:
    """`rope` of the one object that describes it."""
    values = file.values
    if not isinstance(parameters, dict):
        raise file.error("rope_scaling", parameters, "an object")
    for key, value in parameters.items():
        if isinstance(value, dict):
            raise file.error(f"rope_parameters.{key}", value, "no object: gptbench has one rope for all layers")
    theta = file.number(parameters if "rope_theta" in parameters else values, "rope_theta", 10000.0)
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise file.error("partial_rotary_factor", parameters["partial_rotary_factor"], "1: gptbench has no other")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise file.error("rope_type", kind, f"one of {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return theta, None
    scaling = {"factor": file.number(parameters, "factor"), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "linear":
        if theta < 1:
            raise file.error("rope_theta", theta, "a number of at least 1 beside rope_type=linear")
        return theta, scaling | {"original_context": LINEAR}
    key = "original_max_position_embeddings"  # the library prefers it outside of the object
    original = values.get(key, parameters.get(key, file.integer("max_position_embeddings")))
    if isinstance(original, bool) or not isinstance(original, int) or not 0 < original <= 2**24:
        raise file.error(key, original, f"a whole number from 1 to {2**24}")
    return theta, scaling | {
        "low_freq_factor": file.number(parameters, "low_freq_factor"),
        "high_freq_factor": file.number(parameters, "high_freq_factor"),
        "original_context": original,
    }
