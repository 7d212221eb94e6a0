"""Embedded servers of these tests' own, whatever the environment says of others."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ops.local import services
from ops.local.services import Endpoints, Service
from ops.local.services.detached import Process
from ops.local.services.layout import Home
from tests.fixtures.services import private_home


@pytest.fixture(scope="package")
def without_urls() -> Iterator[pytest.MonkeyPatch]:
    """No server and no port of the user's is in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for service in Service:
            patch.delenv(service.variable, raising=False)
            patch.delenv(service.port_variable, raising=False)
        patch.delenv("CRM_REPLAY_HOME", raising=False)
        yield patch


@dataclass
class Stack:
    """All three servers, running."""

    home: Path
    endpoints: Endpoints

    def process(self, service: Service) -> Process | None:
        """Return the live process of a server."""
        return Process.read(Home.at(self.home).process_file(service))


@pytest.fixture(scope="package")
def stack(without_urls: pytest.MonkeyPatch) -> Iterator[Stack]:
    """All three servers in a home of their own. A test that stops one starts it again."""
    with contextlib.ExitStack() as leave:
        home = leave.enter_context(private_home())
        yield Stack(home, services.up(home))


@pytest.fixture
def empty_home(without_urls: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home in which nothing has run yet."""
    with private_home() as home:
        yield home
