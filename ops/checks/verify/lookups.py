"""Lookups over tables that do not change any more: each answer is decoded once and kept.

The processors' own lookups check at every query whether the row has been updated meanwhile; a check reads the tables
once, and makes two and a half lookups a row.
"""

from collections.abc import Callable
from typing import TypeVar

from processors.lookups.answers import TableLookups
from schemas.records import Contact, Referent, User

K = TypeVar("K")
V = TypeVar("V")
KEPT_MAX = 20_000  # answers of each kind: a person's rows come close together


class KeptLookups:
    """Answers of `TableLookups`, kept. Same answers, same order of questions, less work."""

    def __init__(self, tables: TableLookups) -> None:
        """`tables` gives each answer the first time."""
        self.contact: Callable[[str], Contact | None] = _Kept(tables.contact).__getitem__
        self.user: Callable[[int], User | None] = _Kept(tables.user).__getitem__
        self._referents: _Kept[tuple[str, int], Referent | None] = _Kept(lambda key: tables.referent(*key))
        self.sso_id = tables.sso_id  # the directory keeps its answers itself, and learns more of them

    def referent(self, referent_type: str, referent_id: int) -> Referent | None:
        """Return what a CRM record is called."""
        return self._referents[referent_type, referent_id]


class _Kept(dict[K, V]):
    """A cache that fetches what it lacks, and is emptied when it is full."""

    def __init__(self, fetch: Callable[[K], V]) -> None:
        super().__init__()
        self._fetch = fetch

    def __missing__(self, key: K) -> V:
        if len(self) >= KEPT_MAX:
            self.clear()
        value = self[key] = self._fetch(key)
        return value
