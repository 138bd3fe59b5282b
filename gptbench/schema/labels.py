"""Short labels of records that are shown together, made only of what distinguishes them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gptbench.config.quant import weights_text
from gptbench.schema.identity import NON_IDENTITY_FIELDS, WEIGHTS, fields_of

if TYPE_CHECKING:
    from gptbench.schema.record import Recorded

NAMED = ("model", "weights", "engine")
"""Traits that are shown by value alone, and that name a record which nothing distinguishes from the others."""
LEFT_OUT = ("workload.batch_size", "workload.name", "model.name", "engine.name", "quant.name", WEIGHTS)
"""Fields that other traits represent; a workload, for example, by its contents."""
LAST = ("prompt", "commit")
"""Traits that are shown only if no other trait differs, the first before the second."""
PROMPT_DIGITS = 8
"""Digits of the hash that distinguishes prompts of the same length."""
PLAIN = (*NAMED, "dtype", "batch", "device", "commit")
"""Traits that are shown by value alone; the others are shown as `key=value`."""
MAX_CHARACTERS = 24
"""Maximum characters of one value."""


def labels(records: Iterable["Recorded"]) -> list[str]:
    """Return a label for each record; all are different."""
    return names([traits(record) for record in records])


def names(records: list[dict[str, str]]) -> list[str]:
    """Return labels for the traits of each record. Equal labels are numbered."""
    left_out = set(LAST)
    labels = worded([{key: value for key, value in record.items() if key not in left_out} for record in records])
    for trait in LAST:
        kept_out = left_out - {trait}
        longer = worded([{key: value for key, value in record.items() if key not in kept_out} for record in records])
        if len(set(longer)) > len(set(labels)):
            labels = longer
            left_out.remove(trait)
    return numbered(labels)


def worded(records: list[dict[str, str]]) -> list[str]:
    """Return the differing traits of each record in one line."""
    keys = [key for key in dict.fromkeys(key for record in records for key in record) if differs(key, records)]
    short = short_keys([key for key in keys if key not in PLAIN])
    lines = []
    for record in records:
        shown = [(key, record[key]) for key in keys or NAMED if key in record]
        lines.append(" ".join(value if key in PLAIN else f"{short[key]}={value}" for key, value in shown))
    return lines


def differs(key: str, records: list[dict[str, str]]) -> bool:
    """Return whether a trait differs. The fields of a group, such as `model.dim`, are compared only among records with
    the same option of that group: between other records, the option's name shows the difference."""
    options: dict[str | None, set[str]] = {}
    for record in records:
        if key in record:
            group = key.partition(".")[0]
            is_field = "." in key and not key.endswith(".name")
            option = record.get(group, record.get(f"{group}.name")) if is_field else None
            options.setdefault(option, set()).add(record[key])
    return any(len(values) > 1 for values in options.values())


def numbered(labels: list[str]) -> list[str]:
    """Return the labels with equal ones numbered, so that all are different."""
    equal, seen, unique = Counter(labels), Counter[str](), []
    for name in labels:
        seen[name] += 1
        unique.append(f"{name} #{seen[name]}" if equal[name] > 1 else name)
    return unique


def traits(record: "Recorded") -> dict[str, str]:
    """Return everything that may distinguish a record from others, as text: what a number depends on, and where it
    comes from."""
    config = record.config
    known = {"model": config["model"]["name"], "weights": record.weights, "engine": config["engine"]["name"]}
    if known["weights"] != record.number_type:
        known["dtype"] = record.number_type
    known["batch"] = f"b{config['workload']['batch_size']}"
    fields = fields_of(config, NON_IDENTITY_FIELDS) | {"device.threads": config["device"].get("threads")}
    for key, value in fields.items():
        section, _, name = key.rpartition(".")
        # What a task measures beside the speed does not change the speed.
        if section not in ("", "task") and key not in LEFT_OUT and name != "_target_":
            known[key] = value_text(name, value)
    return known | record.extra_traits()


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of a nested dict but None, as text under its dotted key; `quant.weights` is a single value."""
    for key, value in values.items():
        if f"{prefix}{key}" == WEIGHTS:
            if value:
                yield WEIGHTS, weights_text(value)
        elif isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def value_text(key: str, value: Any) -> str:
    """Return a value of the configuration in words: top_k is `all` without a limit, temperature 0 is `greedy`."""
    if value is None:
        return "all" if key == "top_k" else "none"
    if key == "temperature" and value == 0:
        return "greedy"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return both ends of a text that is too long: names of kernels, for example, begin alike."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def short_commit(commit: str | None) -> str:
    """Return the first digits of a commit, and whether the code differs from it."""
    if commit is None:
        return "no commit"
    digits, _, dirty = commit.partition("-")
    return digits[:7] + (f"-{dirty}" if dirty else "")


def short_keys(keys: list[str]) -> dict[str, str]:
    """Return the last part of each key, or the whole key if others share that part."""
    last = {key: key.lstrip("+").rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}
