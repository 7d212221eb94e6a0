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


@contextlib.contextmanager
def no_urls() -> Iterator[None]:
    """No server, home or port of the user's is in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for service in Service:
            patch.delenv(service.variable, raising=False)
            patch.delenv(service.port_variable, raising=False)
        patch.delenv("CRM_REPLAY_HOME", raising=False)
        yield


@pytest.fixture
def without_urls() -> Iterator[None]:
    """No server of the user's is in the environment during this test."""
    with no_urls():
        yield


@dataclass
class Stack:
    """All three servers, running."""

    home: Path
    endpoints: Endpoints

    def process(self, service: Service) -> Process | None:
        """Return the live process of a server."""
        return Process.read(Home.at(self.home).process_file(service))


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """All three servers in a home of their own. A test that stops one starts it again."""
    with private_home() as home:
        with no_urls():
            endpoints = services.up(home)
        yield Stack(home, endpoints)


@pytest.fixture
def empty_home() -> Iterator[Path]:
    """A home in which nothing has run yet."""
    with private_home() as home:
        yield home
