"""Settings from the environment; an invalid one becomes one line of error.

Some can also be read from a file: `NAME_FILE` names one that has the value of `NAME`, for secrets.
"""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, Json, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from schemas.errors import BadInputError
from schemas.job import ReplayJob

FILE_SUFFIX = "_FILE"


class FromFiles(PydanticBaseSettingsSource):
    """Reads each setting from the file that `<PREFIX><NAME>_FILE` names, without the trailing newline."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value, the field's name, and that it is not JSON; raises BadInputError for an unusable file."""
        name = f"{self.config.get('env_prefix', '')}{field_name}".upper()
        path = os.environ.get(name + FILE_SUFFIX, "")
        if not path:
            return None, field_name, False
        if os.environ.get(name):
            raise BadInputError(f"{name} and {name}{FILE_SUFFIX} are both set", "unset one of them")
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise BadInputError(f"{name}{FILE_SUFFIX}: {path}: {why}", "name a text file this user may read") from None

    def __call__(self) -> dict[str, Any]:
        """Return the settings that are in files."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


class Settings(BaseSettings):
    """Settings from the environment; arguments take precedence. A field of JSON is a `Json[...]`."""

    model_config = SettingsConfigDict(env_prefix="CRM_REPLAY_", env_ignore_empty=True, extra="ignore")

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Return the settings; None in `given` is ignored.

        Raises BadInputError naming the first variable that is missing or invalid.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field, *inner = (str(part) for part in first["loc"])
            name = f"{cls.model_config.get('env_prefix', '')}{field}".upper()
            key = f", key {'.'.join(inner)}" if inner else ""
            to_do = "correct it, or unset it for the default"
            if cls.model_fields[field].is_required():
                to_do = "crm-replay sets it for the processes that it starts"
            raise BadInputError(f"{name}{key}: {first['msg']}", to_do) from None


class WorkerSettings(Settings):
    """What every worker of a job is given."""

    job: Json[ReplayJob] = Field(description="the job as JSON")
    stalled_after_s: float = Field(
        180.0,
        gt=0,
        description="a worker whose loop has not turned for so long ends and is started again; one call of MongoDB's"
        " client takes 120 s at most",
    )


class EnvironmentSettings(Settings):
    """Settings from the environment, each also by `NAME_FILE`."""

    model_config = SettingsConfigDict(env_prefix="")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, by precedence."""
        return init_settings, env_settings, FromFiles(settings_cls)
