"""READS: a CRM's audits -> replay topic, each row once, in the order of the ids of its range."""

import schemas  # noqa: F401 - has compiled modules found, or their sources
