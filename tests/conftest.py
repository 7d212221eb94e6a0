"""Fixtures of every test; one plugin per concern in tests/fixtures."""

pytest_plugins = [
    "tests.fixtures.services",
    "tests.fixtures.faults",
    "tests.fixtures.browser",
    "tests.fixtures.properties",
    "tests.fixtures.prometheus",
    "tests.fixtures.postgres",
]
