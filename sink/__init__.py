"""WRITES: outcomes topic -> MongoDB's activity logs, once per external_id, with every record accounted for."""

import schemas  # noqa: F401 - has compiled modules found, or their sources
