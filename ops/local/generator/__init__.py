"""A generated CRM of any size in PostgreSQL: deterministic, with the forms, the skew and the defects of a real one.

psych.py    Ruby values -> YAML as the gem stores it; proven on the sample rows
pieces.py   parts of `audited_changes`, written once for each version of the gem
history.py  pure: a plan -> rows of audits, as a stream
plain.py    the same with flat rows only, for comparisons with pipelines that just copy
tables.py   PostgreSQL: the tables, COPY, and existing data
"""

from ops.local.generator.history import Plan
from ops.local.generator.tables import Generated, accounts, generate_crm, mapping_path

GENERATED_MAPPING = str(mapping_path())  # source mapping of its accounts

__all__ = ["GENERATED_MAPPING", "Generated", "Plan", "accounts", "generate_crm"]
