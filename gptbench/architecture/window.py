"""Reads the sliding window from a config.json."""

from gptbench.architecture.config_json import ConfigFile
from gptbench.architecture.row import Window

FULL, SLIDING = "full_attention", "sliding_attention"


def sliding_window(file: ConfigFile, window: Window, layers: int) -> int:
    """Return the number of positions that a token attends to in every layer; 0 means all up to its own.

    Raises:
        CheckpointError: layers differ, `layer_types` and `sliding_window` disagree, or transformers' model applies one
            of them to its cache and not to its attention.
    """
    values = file.values
    size = file.integer("sliding_window", default=0)
    if size == 0 and values.get("sliding_window") is not None:
        raise file.error("sliding_window", 0, "a whole number of at least 1, or null for no window")
    used = values.get("use_sliding_window")
    if used not in (True, False, None):
        raise file.error("use_sliding_window", used, "true or false")
    if window in (Window.all_if_used, Window.by_layer_if_used) and not used:
        size = 0
    if window is Window.none:
        context = file.integer("max_position_embeddings")
        if 0 < size < context:
            expected = f"null, or at least max_position_embeddings={context}: its model_type has no sliding window"
            raise file.error("sliding_window", size, expected)
        size = 0
    kinds = values.get("layer_types")
    if kinds is None:
        first = file.integer("max_window_layers") if window is Window.by_layer_if_used else 0
        sliding = max(0, layers - first) if size else 0
    else:
        if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
            expected = f"a list of num_hidden_layers={layers} entries, each {FULL} or {SLIDING}"
            raise file.error("layer_types", kinds, expected)
        sliding = kinds.count(SLIDING)
        if sliding and not size:
            raise file.error("layer_types", kinds, f"only {FULL}, as sliding_window is null, unused or without effect")
        if size and not sliding and window in (Window.all_layers, Window.all_if_used):
            raise file.error("layer_types", kinds, f"only {SLIDING}, as sliding_window={size} applies to every layer")
    if 0 < sliding < layers:
        key = "layer_types" if kinds is not None else "max_window_layers"
        expected = f"the same for every layer (sliding_window={size} applies to {sliding} of {layers})"
        raise file.error(key, values[key], f"{expected}: gptbench supports only one window for all layers")
    return size if sliding else 0
