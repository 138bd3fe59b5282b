"""Where there is no GPU: Triton kernels run in Triton's interpreter, and what is marked `gpu` is skipped."""

import gc
import os
import signal
import sys

import torch

from tests.caches import own_caches, remove

# Triton reads this when it is imported, and again for each kernel. Importing torch does not import Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Where there is one, each process of pytest-xdist has compile caches of its own, so that none loads what another has
# left there. On a CPU, where nothing of Triton's is kept, they share one: each would compile the same C++ again.
if torch.cuda.is_available():
    OWN_CACHES = own_caches(os.environ)
    os.environ.update(OWN_CACHES)
else:
    OWN_CACHES = {}

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from gptbench.base import redaction
from gptbench.base.paths import conf_folder
from gptbench.config import register
from gptbench.config.guard import install
from tests.warm import Warm, shrink_roof

# A script's background ignores Ctrl-C, and so would what tests start in it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Its caches end with the process."""
    remove(OWN_CACHES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a browser or a wheel as slow, and skips what is marked `gpu` where torch sees none."""
    for item in items:
        if {"browser", "wheel"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a GPU, and torch sees none here")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


MODULES = 0
"""How many there were when what was there was last set apart."""


def pytest_runtest_setup() -> None:
    """Each job collects garbage several times. What is there before the tests, modules and every test, is none of
    theirs: to search it would take most of their time. So is what the first tests import."""
    global MODULES
    if len(sys.modules) > MODULES + 20:
        gc.collect()
        gc.freeze()
        MODULES = len(sys.modules)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that a test has given are no secrets of the next one's: one may be a word that its messages have."""
    monkeypatch.setattr(redaction, "remembered", set())


@pytest.fixture
def small_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rate at which memory is read is of no interest."""
    shrink_roof(monkeypatch.setattr)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """As every engine runs the model."""
    with torch.no_grad():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread only waits, and on a busy machine four times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_compiled(one_thread: None) -> Iterator[None]:
    """Each test compiles for itself: torch keeps at most 8 shapes of the same code."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """For tests of whole commands that are started often."""
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store of MLflow's as it has just been made, to be copied: making one takes seconds."""
    from gptbench.record.store import is_whole, make_whole
    from tests.servers import hasty_sqlite

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    with hasty_sqlite():
        assert make_whole(file) is None
    assert is_whole(file)
    assert [path.name for path in file.parent.iterdir()] == ["mlflow.db"]
    return file


@pytest.fixture
def composing() -> Iterator[None]:
    """Hydra, ready to compose what is shipped."""
    GlobalHydra.instance().clear()
    register()
    install()
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        yield
