"""What is without end, or too much for any machine: refused at once, with the number and the limit."""

import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf

from gptbench.base.errors import ConfigError, InputError, UserError
from gptbench.base.inputs import MAX_YAML_DEPTH, MAX_YAML_VALUES, read_yaml, require_bounded_yaml
from gptbench.base.paths import conf_folder
from gptbench.commands.ab import composed
from gptbench.compare.baseline import read_baseline
from gptbench.config import MAX_JOBS, SweepConfig, load, refusal
from gptbench.engine import compile_cache
from gptbench.sweep.space import Product, Space, overrides_parser
from gptbench.text.prompt import first_tokens

BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{{', '.join(f'k{key}: *a{level - 1}' for key in range(10))}}}\n" for level in range(1, 9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 9)
)


@contextmanager
def at_once() -> Iterator[None]:
    start = time.process_time()
    yield
    assert time.process_time() - start < 5


def test_yaml_is_bounded_before_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "b.yaml"
    for text, told in (
        (BOMB, f"YAML of over {MAX_YAML_VALUES:,} values"),
        (MERGES, f"YAML of over {MAX_YAML_VALUES:,} values"),
        (f"a: [{'1, ' * MAX_YAML_VALUES}]", f"YAML of over {MAX_YAML_VALUES:,} values"),
        ("a: &a [*a]", r"\*a is within &a, so that the YAML never ends"),
        ("[" * 10_000, f"nested more than {MAX_YAML_DEPTH} levels"),
        ("x" * 2**20 + "x", "1,048,577 bytes"),
    ):
        file.write_text(text)
        for read in (read_yaml, lambda path: read_baseline(str(path))):
            with at_once(), pytest.raises(InputError, match=told):
                read(file)
    for path in Path(conf_folder()).rglob("*.yaml"):
        read_yaml(path)
    require_bounded_yaml("a: &a {b: &b 1}\nc: {<<: *a, d: *b, e: *unknown}\n- [", "no YAML")


def test_yaml_of_configurations_is_bounded(tmp_path: Path, composing: None) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bomb.yaml").write_text(f"# @package _global_\n{BOMB}")
    with at_once(), pytest.raises(InputError, match="YAML of over"):
        composed(["experiment=bomb"], str(tmp_path))
    OmegaConf.register_new_resolver("oc.create", refusal.created, replace=True)
    config = OmegaConf.create({"a": "${oc.create:${b}}", "b": BOMB, "c": "${oc.create:'{x: 1}'}"})
    with at_once(), pytest.raises(Exception, match="YAML of over"):
        print(config.a)
    assert config.c == {"x": 1}


TOO_MUCH = {
    "model.n_layers=1000000": "model.n_layers=1000000: expected a number of at most 1000",
    "model.dim=1000000000000000 model.n_heads=2": "model.dim=1000000000000000: expected a number of at most 1048576",
    "model.vocab_size=1000000000": "model.vocab_size=1000000000: expected a number of at most 16777216",
    "model.context=2000000000": "model.context=2000000000: expected a number of at most 268435456",
    "model.n_experts=16777216 model.n_active_experts=1": "model.n_experts=16777216: expected a number of at most 4096",
    "model.context=200000000 workload.prompt_length=100000000": "workload.prompt_length=100000000: expected a number",
    "workload.batch_size=1000000": "workload.batch_size=1000000: expected a number of at most 65536",
    "workload.samples=1000000": "workload.samples=1000000: expected a number of at most 10000",
    "workload.samples=10000 workload.new_tokens=2000": "samples=10000: expected at most 1597 with new_tokens=2000",
    "workload.new_tokens=2000 workload.batch_size=60000": "new_tokens=2000: expected at most 186 with batch_size=60000",
    "model.context=9000000 workload.prompt_length=4000000 workload.batch_size=8": "at most 1398101 for each of 8",
    "task=quality task.tokens=1000000000": "task.tokens=1000000000: expected a number of at most 4194304",
    "task=kernels task.sizes=[1000000000]": "expected numbers up to 1048576",
    "tracking.timeout_s=1e300": "expected a number of seconds over 0, up to 2592000",
    "sweep.timeout_s=1e300 isolation=process": "expected a number of seconds over 0, up to 2592000",
    "sweep=random sweep.jobs=1000000": "sweep.jobs=1000000: expected a number of at most 10000",
}


def test_what_no_machine_has_is_refused_before_it_is_made(composing: None) -> None:
    for overrides, told in TOO_MUCH.items():
        with at_once(), pytest.raises(ConfigError) as refused:
            load(compose("config", ["model=mixtral_tiny", *overrides.split()]))
        assert told in str(refused.value)


def test_jobs_are_counted_before_they_are_made() -> None:
    def jobs(*overrides: str) -> int:
        space = Space.of(overrides_parser().parse_overrides([*overrides]), [])
        return len(Product(SweepConfig(_target_="gptbench.sweep.Product", name="product")).draw(space))

    assert jobs("workload.seed=range(1,101)", "sampling.top_k=range(0,100)") == MAX_JOBS
    for overrides, told in (
        (["workload.seed=range(1,10000000)"], "9999999 numbers: expected"),
        (["workload.seed=range(0,1,0.0000001)"], "10000000 numbers: expected"),
        (["workload.seed=shuffle(range(1,10000000))"], "9999999 numbers: expected"),
        (["workload.seed=sort(range(1,10000000))"], "9999999 numbers: expected"),
        (["workload.seed=range(1,10000)", "sampling.top_k=range(1,10000)"], "9999 × 9999 = 99980001 jobs: expected"),
        ([f"workload.seed={','.join(map(str, range(10_001)))}"], "a list of 10001 values: expected at most 10000"),
    ):
        with at_once(), pytest.raises((UserError, HydraException), match=told):
            jobs(*overrides)


def zipped(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def test_cache_files_are_bounded(tmp_path: Path) -> None:
    place = compile_cache.LocalCaches(tmp_path / "outputs")
    manifest = {compile_cache.MANIFEST: json.dumps(asdict(replace(place.manifest, files=1))).encode()}
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 2**40)
    many = zipfile.ZipFile(tmp_path / "many", "w")
    with many:  # a list of files that are one and the same, which is all that is read of them
        many.writestr("triton/x", b"")
        many.filelist *= 100_000
    bomb = zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED)
    with bomb:
        bomb.writestr("triton/x", bytes(2**20))
        bomb.filelist *= 10_000
    for file, told in (
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "sparse", "bytes, but at most"),
        (tmp_path / "many", "100,000 files: expected 50,000 at most"),
        (zipped(tmp_path / "group", manifest | {"triton/a/__grp__x.json": bytes(2**21)}), "expected 1,048,576 at most"),
        (tmp_path / "bomb", "10,485,760,000 bytes unpacked: expected 8,589,934,592 at most"),
    ):
        with at_once(), pytest.raises(UserError, match=told):
            compile_cache.load(file, place)


class Counting:
    """A tokenizer of words, which says how much it was asked for."""

    bos, source, characters = None, "words", 0

    def encode(self, text: str) -> list[int]:
        self.characters += len(text)
        return [len(word) for word in text.split()]


def test_of_a_long_text_only_so_much_is_encoded_as_can_matter() -> None:
    tokenizer = Counting()
    assert len(first_tokens(tokenizer, "word " * 10**6, 1000)) > 2000  # type: ignore[arg-type]
    assert tokenizer.characters < 10**6
