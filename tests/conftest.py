"""Fixtures of every test; one plugin per concern in tests/fixtures."""

from schemas.compiled import hot_paths

pytest_plugins = [
    "tests.fixtures.services",
    "tests.fixtures.faults",
    "tests.fixtures.browser",
    "tests.fixtures.properties",
    "tests.fixtures.prometheus",
    "tests.fixtures.postgres",
]


def pytest_report_header() -> str:
    """Return in which form the hot paths are tested."""
    return f"hot paths: {hot_paths()}"
