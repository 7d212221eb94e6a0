"""Seals: chunks that were proved equal, with the fingerprints of the proof's inputs. Pure but for SealStore.

A chunk's result follows from its source rows, its documents, its dead letters, the user directory's answers, and
from what all chunks share: rules, mapping, reference tables. The transformation is pure. So where every one of these is
unchanged since the chunk was proved, the result is the same, and no row of it has to be transformed again.
A seal is no evidence by itself: any change since, in the source, the copy or this program, makes it void.
"""

import contextlib
import json
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final, Self

from pymongo.errors import DuplicateKeyError, OperationFailure

from ops.checks.verify.model import Failed, Tally
from ops.jobs.operations import digest
from processors.lookups.tables import TableRows
from schemas.collections import SEALS
from schemas.process.mongodb import Database, Documents
from schemas.source.mapping import SourceMapping

# Whatever can decide what a row becomes, and how that is compared. A change to any file makes every seal void.
CODE = ("schemas", "producer", "processors", "ops.checks.verify")
CODE_SUFFIXES = (".py", ".sql", ".avsc", ".yaml")
LIBRARIES = ("psycopg", "pymongo", "PyYAML")  # that read rows and changes, and encode documents
WITHOUT_MAX = 10_000  # rows without a document that a seal names; each is looked for again
ACTING_MAX = 100_000  # users that it names, where a directory is queried
_COUNTS: Final = ("rows", "logs", "before_cutoff", "matched", "enriched", "tagged", "retried")
_COUNTERS: Final = ("skipped", "failed")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The fingerprints of one chunk; equal ones mean an equal result."""

    basis: str  # `basis_of` all chunks
    rows: str  # of the source
    documents: Mapping[str, str]  # by run, of those that have any
    letters: str
    answers: str = ""  # of the user directory; "" where none is queried


@dataclass(frozen=True, slots=True)
class Seal:
    """The ids in (low, high] were proved equal. Holds counts, ids and fingerprints, nothing of a row's content."""

    low: int
    high: int
    evidence: Evidence
    without: tuple[int, ...]  # rows that became no document, with a dead letter
    acting: tuple[int, ...]  # CRM users for whom the directory was queried
    counts: Mapping[str, int]
    counters: Mapping[str, Mapping[str, int]]
    failures: tuple[Failed, ...]

    @classmethod
    def of(
        cls,
        low: int,
        high: int,
        evidence: Evidence,
        tally: Tally,
        without: Iterable[int] = (),
        acting: Iterable[int] = (),
    ) -> Self:
        """Return the seal of a chunk with the result `tally`, which has no findings."""
        return cls(
            low,
            high,
            evidence,
            tuple(sorted(without)),
            tuple(sorted(acting)),
            {name: getattr(tally, name) for name in _COUNTS},
            {name: dict(getattr(tally, name)) for name in _COUNTERS},
            tuple(tally.failures),
        )

    def tally(self) -> Tally:
        """Return the chunk's result."""
        counters = {name: Counter(counts) for name, counts in self.counters.items()}
        return Tally(**self.counts, **counters, failures=list(self.failures), unchanged=self.counts["rows"])  # type: ignore[arg-type]

    def names_enough(self, named_max: int) -> bool:
        """Return whether it names as many failed rows as the operator now requests."""
        return len(self.failures) >= min(named_max, sum(self.counters["failed"].values()))

    def as_document(self, company_sso_id: str) -> dict[str, Any]:
        """Return it as MongoDB keeps it."""
        evidence = self.evidence
        return {
            "_id": f"{company_sso_id}/{self.low}",
            "company_sso_id": company_sso_id,
            "low": self.low,
            "high": self.high,
            "basis": evidence.basis,
            "rows": evidence.rows,
            "documents": dict(evidence.documents),
            "letters": evidence.letters,
            "answers": evidence.answers,
            "without": list(self.without),
            "acting": list(self.acting),
            "counts": dict(self.counts),
            "counters": {name: sorted(counts.items()) for name, counts in self.counters.items()},
            "failures": [[failed.audit_id, failed.cause] for failed in self.failures],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Seal | None":
        """Return the seal that MongoDB has kept; None for one of another release, or an altered one."""
        try:
            return cls(
                int(document["low"]),
                int(document["high"]),
                Evidence(
                    str(document["basis"]),
                    str(document["rows"]),
                    dict(document["documents"]),
                    str(document["letters"]),
                    str(document["answers"]),
                ),
                tuple(map(int, document["without"])),
                tuple(map(int, document["acting"])),
                {name: int(document["counts"][name]) for name in _COUNTS},
                {name: {str(of): int(count) for of, count in document["counters"][name]} for name in _COUNTERS},
                tuple(Failed(int(audit_id), str(cause)) for audit_id, cause in document["failures"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


# ---- fingerprints


def basis_of(
    company_sso_id: str,
    mapping: SourceMapping,
    tables: Mapping[str, TableRows],
    settings: Mapping[str, Any],
) -> str:
    """Return the fingerprint of what all chunks of an account share; `settings` are all other inputs."""
    parts = {
        "company_sso_id": company_sso_id,
        "code": code_fingerprint(),
        "mapping": digest(mapping),
        "tables": {name: table_fingerprint(rows) for name, rows in tables.items()},
        "settings": dict(settings),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_fingerprint() -> str:
    """Return the fingerprint of the program, as far as it decides what a row becomes."""
    hashed = sha256(sys.version.encode())
    for library in LIBRARIES:
        hashed.update(b"%b\0%b\0" % (library.encode(), version(library).encode()))
    for package in CODE:
        for name, content in sorted(_sources(files(package), package)):
            hashed.update(b"%b\0%d\0%b" % (name.encode(), len(content), content))
    return hashed.hexdigest()


def _sources(folder: Traversable, name: str) -> Iterable[tuple[str, bytes]]:
    for entry in folder.iterdir():
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _sources(entry, path)
        elif entry.name.endswith(CODE_SUFFIXES):
            yield path, entry.read_bytes()


def table_fingerprint(rows: TableRows) -> str:
    """Return the fingerprint of a table's rows, in any order."""
    hashed = sha256()
    for key in sorted(rows):
        value = rows[key]
        hashed.update(b"%d %d %b%b" % (len(key), len(value), key, value))
    return hashed.hexdigest()


class Letters:
    """Dead letters by audit id, with fingerprints of id ranges."""

    def __init__(self, causes: Mapping[int, str]) -> None:
        """`causes` by audit id."""
        self._causes = causes
        self._ids: Sequence[int] = sorted(causes)

    def fingerprint(self, low: int, high: int) -> str:
        """Return the fingerprint of the letters about rows of (low, high]; "" if there are none."""
        ids = self._ids[bisect_right(self._ids, low) : bisect_right(self._ids, high)]
        if not ids:
            return ""
        return sha256(json.dumps([[audit_id, self._causes[audit_id]] for audit_id in ids]).encode()).hexdigest()


def answers_fingerprint(answers: Iterable[tuple[int, str | None]]) -> str:
    """Return the fingerprint of the user directory's answers for users, in the order of their ids."""
    return sha256(json.dumps(list(answers)).encode()).hexdigest()


# ---- I/O


class SealStore:
    """The seals of one account in MongoDB."""

    def __init__(self, database: Database, company_sso_id: str) -> None:
        """`database` is the platform's."""
        self._seals: Documents = database[SEALS]
        self._company_sso_id = company_sso_id

    def load(self) -> dict[int, Seal]:
        """Return the seals by the id below their first."""
        found = self._seals.find({"company_sso_id": self._company_sso_id})
        seals = (Seal.from_document(document) for document in found)
        return {seal.low: seal for seal in seals if seal is not None}

    def keep(self, seal: Seal) -> bool:
        """Keep a seal in the place of the one before it; return whether the database let us."""
        document = seal.as_document(self._company_sso_id)
        try:
            self._seals.replace_one({"_id": document["_id"]}, document, upsert=True)
        except DuplicateKeyError:
            pass  # another check of the account has sealed the chunk at this moment
        except OperationFailure:
            return False
        return True

    def drop_others(self, basis: str) -> None:
        """Drop the seals that no check will find intact any more, because what all chunks share has changed."""
        with contextlib.suppress(OperationFailure):  # one that may not write has kept none, either
            self._seals.delete_many({"company_sso_id": self._company_sso_id, "basis": {"$ne": basis}})
