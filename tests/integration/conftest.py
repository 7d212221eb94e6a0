"""What tests of several packages need on real servers."""

from typing import Any

import pytest

from ops.jobs import migrations


@pytest.fixture
def database(mongo_database: Any) -> Any:
    """Give a migrated database."""
    migrations.up(mongo_database)
    return mongo_database
