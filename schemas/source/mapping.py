"""The source mapping file: what the CRM's tables, types, columns and status ids mean. Parsing is pure; see `load`."""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from schemas.errors import MappingError
from schemas.records import AuditEvent

DEFAULT_MAPPING = "mapping.default.yaml"
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_$]*$", max_length=63)]
TypeName = Annotated[str, StringConstraints(min_length=1)]
StatusId = int | str
WINDOW_S_MAX = 3_600.0  # of the enrichment's match key


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)


class AccountColumn(_Strict):
    """The column by which an account's rows are selected. Left out: the whole table is this account's."""

    column: Identifier
    query: str = Field(description="returns that column's value; %(company_sso_id)s is the account")
    # The way back, which the live feed needs: change events carry the column, not the account. No part of what a replay
    # does, so neither is part of what a resumed job compares.
    inverse: str | None = Field(
        None,
        exclude=True,
        description="the live feed's: returns every account as two columns, value and company_sso_id",
    )
    is_company_sso_id: bool = Field(
        False, exclude=True, description="the column's value is the company_sso_id itself: no inverse is needed"
    )

    @model_validator(mode="after")
    def _query_takes_the_account(self) -> "AccountColumn":
        if "%(company_sso_id)s" not in self.query:
            raise ValueError("the query does not use %(company_sso_id)s")
        if self.inverse is not None and self.is_company_sso_id:
            raise ValueError("inverse and is_company_sso_id exclude each other")
        if self.inverse is not None and "%(" in self.inverse:
            raise ValueError("the inverse takes no parameters: it returns every account")
        return self


class AuditTable(_Strict):
    """Where the audit rows are."""

    schema_name: Identifier = Field(default="public", alias="schema")
    table: Identifier = "audits"
    account: AccountColumn | None = None


class PersonRule(_Strict):
    """Which rows and columns name a person."""

    type: TypeName | Annotated[tuple[TypeName, ...], Field(min_length=1)] = Field(
        "Crm::Person", description="or several, whose ids are all CRM person ids"
    )
    columns: tuple[Identifier, ...] = ("crm_person_id",)  # in audited_changes; tried in this order
    comment_key: str = "crm_person_id"  # in a comment that is JSON

    @cached_property
    def types(self) -> frozenset[str]:
        """The types whose records are persons."""
        return frozenset((self.type,) if isinstance(self.type, str) else self.type)


class StatusRule(_Strict):
    """An update of `column` to an id of the set is this action instead of `update`."""

    column: Identifier
    id_set: str
    action: str


class CategoryRule(_Strict):
    """What rows of a type become: `<category>/create|update|delete`, or the status rule's action."""

    category: str
    status: StatusRule | None = None


class JoinModel(_Strict):
    """A type that links two records: `<category>/link|unlink|update`."""

    category: str
    links: dict[Identifier, TypeName] = Field(min_length=2, max_length=2)  # column -> type it refers to


class TableOf(_Strict):
    """Where the names of a type's records are."""

    schema_name: Identifier = Field(default="public", alias="schema")
    table: Identifier
    id: Identifier = "id"
    name: str = Field(description="an SQL expression over the table's columns")


class UsersTable(_Strict):
    """Where the CRM's users are."""

    schema_name: Identifier = Field(default="public", alias="schema")
    table: Identifier = "users"
    id: Identifier = "id"
    email: Identifier = "email"
    full_name: Identifier = "full_name"
    deleted_at: Identifier = "deleted_at"
    type: str = "User"  # their audits.user_type


class ActorNames(_Strict):
    """What an activity log calls those who are not (or no longer) known as users."""

    deleted_user: str = "[Deleted CRM User]"
    system: str = "Qontak System"


class EnrichmentRule(_Strict):
    """What is done for association logs that lack ids or names of what they link."""

    during_run: bool = Field(True, description="every run enriches the logs of its rows before it is validated")
    window_s: float = Field(
        2.0, ge=0, le=WINDOW_S_MAX, description="by which a live log without external_id may differ from its row's time"
    )


class SourceMapping(_Strict):
    """The whole file. Where columns are given by type, the type "*" stands for every type."""

    source: AuditTable = AuditTable()
    scope: tuple[TypeName, ...] = Field(min_length=1, description="auditable_type values to read")
    aliases: dict[TypeName, TypeName] = Field(
        {},
        exclude_if=lambda aliases: not aliases,  # so that a mapping without them is what a resumed job remembers
        description="former name of a type -> its name now, by which alone all other sections call it",
    )
    person: PersonRule = PersonRule()
    categories: dict[TypeName, CategoryRule]
    join_models: dict[TypeName, JoinModel] = {}
    id_sets: dict[str, tuple[StatusId, ...]] = {}
    labels: dict[TypeName, dict[str, str]] = Field({}, description="by column; else the column's name, humanised")
    redact: dict[TypeName, tuple[str, ...]] = Field({}, description="columns that become [REDACTED] on both sides")
    enums: dict[TypeName, dict[str, dict[int | str, str]]] = Field(
        {}, description="by column: database value -> name, so that rows of all gem versions show the name"
    )
    list_columns: dict[TypeName, tuple[str, ...]] = Field(
        {}, description="array and JSON columns: a list of two can be a value of theirs in a combined row"
    )
    times_of_day: dict[TypeName, tuple[str, ...]] = Field({}, description="columns of which only the clock time counts")
    time_zone: str | None = Field(
        None, description="of the CRM: for times of day that were stored as a plain UTC timestamp (IANA name)"
    )
    actors: ActorNames = ActorNames()
    users: UsersTable = UsersTable()
    referents: dict[TypeName, TableOf] = {}
    # What is added to documents afterwards is no part of what a row becomes, so no part of what a job compares.
    enrichment: EnrichmentRule = Field(EnrichmentRule(), exclude=True)

    @field_validator("time_zone")
    @classmethod
    def _time_zone_exists(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                ZoneInfo(name)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(f"{name!r} is no time zone; write it like Asia/Jakarta") from None
        return name

    @model_validator(mode="after")
    def _types_have_one_rule(self) -> "SourceMapping":
        for type_name in self.join_models:
            if type_name in self.categories:
                raise ValueError(f"{type_name} is under categories and under join_models")
        return self

    @model_validator(mode="after")
    def _aliases_are_former_names(self) -> "SourceMapping":
        links = {side for join in self.join_models.values() for side in join.links.values()}
        sections: dict[str, Collection[str]] = {
            "scope": self.scope,
            "person.type": self.person.types,
            "categories": self.categories,
            "join_models": self.join_models.keys() | links,
            "labels": self.labels,
            "redact": self.redact,
            "enums": self.enums,
            "list_columns": self.list_columns,
            "times_of_day": self.times_of_day,
            "users.type": (self.users.type,),
            "referents": self.referents,
        }
        for alias, name in self.aliases.items():
            if name in self.aliases:
                raise ValueError(f"aliases: {alias} is an alias of {name}, which is one itself")
            for section, names in sections.items():
                if alias in names:
                    raise ValueError(f"{section} names {alias}, which is an alias: {name} stands for both")
        return self

    def stored_types(self, types: Iterable[str]) -> tuple[str, ...]:
        """Return the types, and every alias of one of them: the possible values of the source's columns."""
        named = tuple(types)
        return (*named, *(alias for alias, name in self.aliases.items() if name in named))

    def named_now(self, event: AuditEvent) -> AuditEvent:
        """Return a row with every type under its name now. Whatever makes an event of a source row calls this."""
        now = self.aliases
        if event.auditable_type in now or event.associated_type in now or event.user_type in now:
            return event._replace(
                auditable_type=now.get(event.auditable_type, event.auditable_type),
                associated_type=now.get(event.associated_type, event.associated_type),
                user_type=now.get(event.user_type, event.user_type),
            )
        return event

    def columns_of(self, by_type: Mapping[str, Iterable[str]], type_name: str) -> frozenset[str]:
        """Return the columns that `by_type` (one of this mapping's) has for a type and for all types."""
        return frozenset((*by_type.get("*", ()), *by_type.get(type_name, ())))


def parse(text: str, file: str) -> SourceMapping:
    """Return the mapping in `text`; `file` is the name that errors give. Raises MappingError naming key and line."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        data = yaml.load(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else file
        raise MappingError(f"{where}: not YAML ({getattr(error, 'problem', None) or error})", "fix the file") from error
    if not isinstance(data, dict):
        raise MappingError(f"{file}, line 1: not a mapping of keys to values", f"start from {DEFAULT_MAPPING}")
    try:
        return SourceMapping.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "(the whole file)"
        line = _line_of(node, first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise MappingError(f"{file}, line {line}, key {key}: {first['msg']}{more}", "fix the file") from error


def load(path: str | Path | None) -> SourceMapping:
    """Return the mapping in a file; None is the default one, which serves the sample CRM."""
    if path is None or str(path) == "":
        return parse(files("schemas.source").joinpath(DEFAULT_MAPPING).read_text("utf-8"), DEFAULT_MAPPING)
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"source mapping {path}: {error}", "name a readable UTF-8 file with --mapping") from error
    return parse(text, str(path))


def _line_of(node: Any, location: tuple[int | str, ...]) -> int:
    """Return the line (from 1) where the deepest existing part of `location` stands in the composed YAML."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    node, line = value, key.start_mark.line + 1
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
