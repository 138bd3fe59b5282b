"""Short names of records that are shown together, made of nothing but what tells one from another."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gptbench.config.quant import weights_text
from gptbench.schema.identity import NON_IDENTITY_FIELDS, WEIGHTS, fields_of

if TYPE_CHECKING:
    from gptbench.schema.record import Recorded

NAMED = ("model", "weights", "engine")
"""Traits that are told by their value alone, and of which a record is called where nothing tells it from others."""
LEFT_OUT = ("workload.batch_size", "workload.name", "model.name", "engine.name", "quant.name", WEIGHTS)
"""Fields that are told in another way, of a workload by what is in it."""
LAST = ("prompt", "commit")
"""Traits that are told where nothing else is different, the first before the second."""
PROMPT_DIGITS = 8
"""Of the hash by which a prompt is told from another of the same length."""
PLAIN = (*NAMED, "dtype", "batch", "device", "commit")
"""The others are told as `key=value`."""
MAX_CHARACTERS = 24
"""Of one value."""


def labels(records: Iterable["Recorded"]) -> list[str]:
    """A name for each, all different."""
    return names([traits(record) for record in records])


def names(found: list[dict[str, str]]) -> list[str]:
    """As `labels`, for traits. Equal names are numbered."""
    left = set(LAST)
    made = worded([{key: value for key, value in each.items() if key not in left} for each in found])
    for trait in LAST:
        more = worded([{key: value for key, value in each.items() if key not in left - {trait}} for each in found])
        if len(set(more)) > len(set(made)):  # else it tells nothing that the others do not
            made = more
            left.remove(trait)
    return numbered(made)


def worded(found: list[dict[str, str]]) -> list[str]:
    """What differs, in one line each."""
    keys = [key for key in dict.fromkeys(key for each in found for key in each) if tells(key, found)]
    short = short_keys([key for key in keys if key not in PLAIN])
    made = []
    for each in found:
        told = [(key, each[key]) for key in keys or NAMED if key in each]
        made.append(" ".join(value if key in PLAIN else f"{short[key]}={value}" for key, value in told))
    return made


def tells(key: str, found: list[dict[str, str]]) -> bool:
    """Whether a trait differs. The fields of a group, such as `model.dim`, count among the records that have the same
    option of that group only: between others, its name has told them."""
    options: dict[str | None, set[str]] = {}
    for each in found:
        if key in each:
            group = key.partition(".")[0]
            option = each.get(group, each.get(f"{group}.name")) if "." in key and not key.endswith(".name") else None
            options.setdefault(option, set()).add(each[key])
    return any(len(values) > 1 for values in options.values())


def numbered(made: list[str]) -> list[str]:
    """The same, all different."""
    equal, seen, unique = Counter(made), Counter[str](), []
    for name in made:
        seen[name] += 1
        unique.append(f"{name} #{seen[name]}" if equal[name] > 1 else name)
    return unique


def traits(record: "Recorded") -> dict[str, str]:
    """All that may tell a record from another, as text: what a number depends on, and where it comes from."""
    config = record.config
    found = {"model": config["model"]["name"], "weights": record.weights, "engine": config["engine"]["name"]}
    if found["weights"] != record.number_type:
        found["dtype"] = record.number_type
    found["batch"] = f"b{config['workload']['batch_size']}"
    fields = fields_of(config, NON_IDENTITY_FIELDS) | {"device.threads": config["device"].get("threads")}
    for key, value in fields.items():
        section, _, name = key.rpartition(".")
        # What a task measures beside the speed does not change it.
        if section not in ("", "task") and key not in LEFT_OUT and name != "_target_":
            found[key] = value_text(name, value)
    return found | record.extra_traits()


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a nested dict but None, as text under its dotted key; `quant.weights` is one."""
    for key, value in values.items():
        if f"{prefix}{key}" == WEIGHTS:
            if value:
                yield WEIGHTS, weights_text(value)
        elif isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def value_text(key: str, value: Any) -> str:
    """A value of the configuration in words: without a limit, top_k is all; at temperature 0 drawing is greedy."""
    if value is None:
        return "all" if key == "top_k" else "none"
    if key == "temperature" and value == 0:
        return "greedy"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """Both ends of a text that is too long: names of kernels, for one, begin alike."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def short_commit(commit: str | None) -> str:
    """The first digits, and whether the code differs from it."""
    if commit is None:
        return "no commit"
    digits, _, dirty = commit.partition("-")
    return digits[:7] + (f"-{dirty}" if dirty else "")


def short_keys(keys: list[str]) -> dict[str, str]:
    """Each key's last part; of those that share it, the whole key."""
    last = {key: key.lstrip("+").rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}
