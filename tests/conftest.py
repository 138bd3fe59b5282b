"""Fixtures of all tests. Without a GPU, Triton kernels run in Triton's interpreter, and tests marked `gpu` are
skipped."""

import gc
import os
import signal
import sys

import torch

from tests.caches import private_caches, remove

# Triton reads this when it is imported, and again for each kernel. Importing torch does not import Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# With a GPU, each process of pytest-xdist has private compile caches, so that none loads what another has left there.
# On a CPU, where Triton caches nothing, they share one, so as not to compile the same C++ several times.
if torch.cuda.is_available():
    PRIVATE_CACHES = private_caches(os.environ)
    os.environ.update(PRIVATE_CACHES)
else:
    PRIVATE_CACHES = {}

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

# Background processes of a script ignore Ctrl-C, and so would the processes that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Remove the caches of this process."""
    remove(PRIVATE_CACHES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that need a browser or a wheel as slow, and skip those marked `gpu` if torch sees none."""
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
"""Number of loaded modules when `gc.freeze` was last called."""


def pytest_runtest_setup() -> None:
    """Exempt from garbage collection what exists before the tests, and what the first tests import: each job collects
    garbage several times, and searching all modules and tests would take most of its time."""
    global MODULES
    if len(sys.modules) > MODULES + 20:
        gc.collect()
        gc.freeze()
        MODULES = len(sys.modules)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the passwords of earlier tests: one may be a word that occurs in this test's messages."""
    monkeypatch.setattr(redaction, "remembered", set())


@pytest.fixture
def small_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the read roof quickly, for tests that do not depend on it."""
    shrink_roof(monkeypatch.setattr)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Disable gradients, as every engine does."""
    with torch.no_grad():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on tiny tensors a second one only waits, and on a busy machine for a long time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_compiled(one_thread: None) -> Iterator[None]:
    """Reset torch's compiler before and after the test: it keeps at most 8 shapes of the same code."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Yield a server that starts whole commands without importing everything anew."""
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new SQLite store of MLflow to be copied, as making one takes seconds."""
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
    """Initialise Hydra to compose the configuration that gptbench ships."""
    GlobalHydra.instance().clear()
    register()
    install()
    with initialize_config_dir(config_dir=str(conf_folder()), version_base="1.3"):
        yield
