"""Real models and real systems for the tests that claim end-to-end behaviour."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ecd.engine.llama import LlamaModel
from ecd.lab.system import DaemonProcess, address_of, running_cloud, running_edge
from ecd.models.fetch import resolve

TARGET, DRAFT = "smollm2-135m", "smollm2-135m-draft"


@pytest.fixture(scope="session")
def target() -> LlamaModel:
    """SmolLM2 Q4_1, the target of the small pair."""
    return LlamaModel(resolve(TARGET))


@pytest.fixture(scope="session")
def draft() -> LlamaModel:
    """The draft of the small pair."""
    return LlamaModel(resolve(DRAFT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's daemons keep their sockets and logs."""
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[DaemonProcess]:
    """A cloud with the small target."""
    with running_cloud(folder, TARGET) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def edge(folder: Path, cloud: DaemonProcess) -> Iterator[DaemonProcess]:
    """An edge with the small draft, connected to `cloud`."""
    with running_edge(folder, DRAFT, address_of(cloud)) as daemon:
        yield daemon
