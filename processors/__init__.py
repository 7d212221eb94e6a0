"""The processors: replay or live topic -> outcomes topic, exactly one outcome for every record."""

import schemas  # noqa: F401 - has compiled modules found, or their sources
