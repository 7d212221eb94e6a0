"""Every setting on one page, generated from the models that read them."""

from collections.abc import Iterator

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from ops.cli.reference.text import MADE, cell
from ops.control.settings import ControlSettings
from ops.local.services.layout import ServiceSettings
from processors.feed.worker import LiveSettings
from processors.settings import ProcessorSettings
from producer.settings import ProducerSettings
from schemas import compiled
from schemas.process import exposition, logs
from schemas.process.connections import Connections
from schemas.process.environment import EnvironmentSettings
from schemas.process.tracing import TracingSettings
from sink.feed.sink import LiveSinkSettings
from sink.settings import SinkSettings

HEAD = f"""# Settings

{MADE} Everything is read from the environment.

Settings marked *runner* are set by `crm-replay run` and `crm-replay runner` for the processes they start.
"""
OF_OTEL = "`OTEL_EXPORTER_OTLP_*`, `OTEL_BSP_*`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`"
SECTIONS: tuple[tuple[str, str, type[BaseSettings]], ...] = (
    ("Servers", "Where PostgreSQL, Kafka and MongoDB are, for every process.", Connections),
    ("Producer", "The snapshot.", ProducerSettings),
    ("Processors", "The topology, in replay and live.", ProcessorSettings),
    ("Sink", "The writes.", SinkSettings),
    ("Live processors", "Beside those of the processors.", LiveSettings),
    ("Live sink", "Beside those of the sink.", LiveSinkSettings),
    (
        "Traces",
        f"The same for producer, processors and sinks. OpenTelemetry's own variables configure the rest: {OF_OTEL}.",
        TracingSettings,
    ),
    ("Control plane", "`crm-replay control`.", ControlSettings),
    ("Embedded servers", "`crm-replay services`, the demo and the tests.", ServiceSettings),
)
OTHERS = (
    (logs.FORMAT_VARIABLE, "json", "json, or text for a shell"),
    (logs.LEVEL_VARIABLE, "INFO", ", ".join(logs.LEVELS)),
    (exposition.PORT_VARIABLE, "", "serve metrics here, a runner also its workers'; 0: any free port; empty: none"),
    (exposition.ADDRESS_VARIABLE, "127.0.0.1", "address that metrics are served on"),
    (exposition.DIRECTORY_VARIABLE, "", "each process announces its port in a file here, for `file_sd_configs`"),
    (compiled.VARIABLE, "1", "0: run the hot paths from their sources, to debug them"),
    ("CRM_REPLAY_WORKER", "", "runner: the process's name in groups, logs and metrics"),
)
OF_RUNNER = frozenset(("job", "worker", "exit_at_end"))


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(_section(*section) for section in SECTIONS) + _others()


def _section(title: str, what: str, model: type[BaseSettings]) -> str:
    prefix = str(model.model_config.get("env_prefix") or "")
    inherited = _inherited(model)
    rows = "".join(_row(prefix, name, field) for name, field in model.model_fields.items() if name not in inherited)
    if issubclass(model, EnvironmentSettings):
        what += " Each can also be given as `NAME_FILE`, a text file with the value: how secrets are mounted."
    return f"\n## {title}\n\n{what}\n\n| name | default | what |\n| --- | --- | --- |\n{rows}"


def _inherited(model: type[BaseSettings]) -> set[str]:
    """Return the fields that another section has already."""
    return {name for base in model.__bases__ if issubclass(base, BaseSettings) for name in base.model_fields}


def _row(prefix: str, name: str, field: FieldInfo) -> str:
    text = "; ".join(part for part in (field.description or "", ", ".join(_bounds(field))) if part)
    marked = " *(runner)*" if name in OF_RUNNER else ""
    shown = field.validation_alias if isinstance(field.validation_alias, str) else prefix + name
    return f"| `{shown.upper()}` | {_default(field)} | {cell(text)}{marked} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "by host"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return f"`{cell(str(value))}`" if value not in ("", None) else ""


def _bounds(field: FieldInfo) -> Iterator[str]:
    for bound in field.metadata:
        for sign, name in ((">", "gt"), ("≥", "ge"), ("<", "lt"), ("≤", "le")):
            if (value := getattr(bound, name, None)) is not None:
                yield f"{sign} {value}"


def _others() -> str:
    rows = "".join(
        f"| `{name}` | {f'`{default}`' if default else ''} | {cell(what)} |\n" for name, default, what in OTHERS
    )
    head = "## Each process\n\nLogs, metrics and hot paths.\n\n| name | default | what |\n| --- | --- | --- |"
    return f"\n{head}\n{rows}"
