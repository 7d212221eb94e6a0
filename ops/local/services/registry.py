"""Apicurio's schema registry: one process that speaks Confluent's interface, its schemas in a file of its home.

The product does not need it: tests use it for a Kafka Connect that writes Avro, and for records framed with a
registry's ids.
"""

from collections.abc import Mapping
from pathlib import Path

from ops.local.services import ports as loopback
from ops.local.services import tools
from ops.local.services.detached import Command
from ops.local.services.layout import Extra
from ops.local.services.server import Server, Surroundings, environment
from schemas.errors import BadInputError

HEAP_MIB = 256
CONFLUENT_PATH = "/apis/ccompat/v7"
OWN_PATH = "/apis/registry/v2"  # the API of Apicurio's own converter


class RegistryServer(Server):
    """One registry on the loopback address."""

    service = Extra.REGISTRY
    port_names = ("registry",)

    def __init__(self, around: Surroundings) -> None:
        """Nothing is looked for or created yet."""
        super().__init__(around)
        self._java = Path()
        self._program = Path()

    def prepare(self) -> None:
        """Find Java, fetch the program."""
        if ";" in str(self._root):
            raise BadInputError(
                f"the schema registry cannot be used with {self._root}: it splits the name", "set CRM_REPLAY_HOME"
            )
        cache = self._around.tools
        self._java = tools.find_java(cache)
        self._program = tools.registry_program(cache, self._java)
        self._root.mkdir(parents=True, exist_ok=True)

    def command(self, ports: Mapping[str, int]) -> Command:
        """Return its command line, which is all of its configuration."""
        # The first compiler alone, as for Kafka Connect: a short start is worth more here than speed.
        options = [f"-Xmx{HEAP_MIB}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true",
                   f"-Dquarkus.http.host={loopback.HOST}", f"-Dquarkus.http.port={ports['registry']}",
                   self._database_option()]  # fmt: skip
        return Command(
            [str(self._java), *options, "-jar", str(self._program)], cwd=self._root, env=environment(LC_ALL="C.UTF-8")
        )

    def problem(self, ports: Mapping[str, int]) -> str | None:
        """Query its subjects, as a client would."""
        if not loopback.accepts(ports["registry"]):
            return "its port is closed"
        import httpx  # as in `debezium`

        try:
            answer = httpx.get(f"{self.url(ports)}/subjects", timeout=5.0)
        except httpx.HTTPError as error:
            return f"it does not answer ({type(error).__name__})"
        return None if answer.status_code == httpx.codes.OK else f"it answers {answer.status_code}"

    def url(self, ports: Mapping[str, int]) -> str:
        """Return the address of its Confluent interface, which is what SCHEMA_REGISTRY_URL wants."""
        return f"http://{loopback.HOST}:{ports['registry']}{CONFLUENT_PATH}"

    def traces(self) -> list[tuple[str, str]]:
        """Return where its schemas are, and what follows that."""
        return [(self._database_option(), "-jar")]

    def delete_data(self) -> None:
        """Do nothing: its file is in its directory, which is removed as a whole."""

    def _database_option(self) -> str:
        return f"-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{self._root / 'schemas'}"
