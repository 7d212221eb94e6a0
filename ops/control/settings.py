"""The control plane's environment: CRM_CONTROL_*, each also as CRM_CONTROL_*_FILE naming a file with the value."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from schemas.errors import BadInputError
from schemas.process.environment import EnvironmentSettings

PREFIX = "CRM_CONTROL_"
PASSWORD_LENGTH_MIN = 12
SHARED_KEY_BYTES_MIN = 32  # of an HMAC-SHA-256 key (RFC 7518, 3.2)
ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")


class ControlSettings(EnvironmentSettings):
    """The settings of `crm-replay control`, besides the servers' addresses (schemas.process.connections)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(8090, ge=0, le=65535, description="0: a free one, named on standard error")
    tls_certificate_path: str = Field("", description="PEM; empty: plain HTTP, for behind a gateway that ends TLS")
    tls_key_path: str = Field("", description="PEM")
    trusted_proxies: str = Field(
        "127.0.0.1", description="addresses or networks, by commas, whose X-Forwarded-For is trusted"
    )

    basic_credentials: SecretStr = Field(
        SecretStr(""),
        description="user:password, several by spaces or lines; a user twice while its password is being changed",
    )

    jwt_jwks_url: str = Field("", description="where the session tokens' public keys are published")
    jwt_jwks_path: str = Field("", description="or the file they are in; read again when it changes")
    jwt_shared_key: SecretStr = Field(SecretStr(""), description="or the key both sides share, 32 bytes or more")
    jwt_algorithms: str = Field(
        "", description="by commas; left out: RS256,ES256 with public keys, HS256 with a shared"
    )
    jwt_issuer: str = Field("", description="required value of `iss`")
    jwt_audience: str = Field("", description="required value of `aud`, or a member of it")
    jwt_leeway_s: float = Field(30.0, ge=0, le=300, description="tolerated clock difference")
    jwt_tenant_claim: str = Field("company_sso_id", description="claim that holds the tenant")
    jwt_permissions_claim: str = Field("permissions", description="claim with a list, or words by spaces")
    jwt_permission: str = Field("customers_customers_view", description="needed to see the import's status")
    jwt_cookie: str = Field("", description="cookie that may hold the token; empty: only Authorization: Bearer")
    jwks_cache_s: float = Field(300.0, ge=1, description="lifetime of cached public keys")
    jwks_refetch_min_s: float = Field(10.0, ge=0, description="a token with an unknown key fetches no more often")

    mapping_path: str = Field("", description="source mapping of the jobs triggered here; empty: the sample CRM's")
    partitions: int = Field(4, ge=1, le=1024, description="of the topics of the jobs triggered here")

    cors_origins: str = Field(
        "", description="origins that may request the import's status, by commas: https://app.example"
    )
    body_bytes_max: int = Field(2 * 1024 * 1024, ge=1024, description="of a request")
    auth_failures_max: int = Field(10, ge=1, description="of a user from one address within the window; then 429")
    auth_failures_address_max: int = Field(100, ge=1, description="of all users from one address")
    auth_failures_window_s: float = Field(60.0, gt=0, description="the window")
    sse_clients_max: int = Field(50, ge=0, description="of the console's live events; more get 503")
    watch_every_s: float = Field(1.0, gt=0, description="how often the console's events check for changes")
    threads: int = Field(16, ge=1, le=256, description="requests that wait for a server at once, of each of two kinds")
    rollbacks_max: int = Field(4, ge=1, le=64, description="accounts that are rolled back at once; more wait")
    shutdown_grace_s: int = Field(20, ge=0, description="how long requests may take to end after SIGTERM")
    metrics_need_auth: bool = Field(False, description="whether /metrics requires Basic credentials")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """Raise BadInputError for settings that would admit no client, or the wrong ones."""
        self.credentials()
        self._check_tokens()
        if bool(self.tls_certificate_path) != bool(self.tls_key_path):
            raise BadInputError("TLS needs both", f"set {PREFIX}TLS_CERTIFICATE_PATH and {PREFIX}TLS_KEY_PATH")
        for name in ("tls_certificate_path", "tls_key_path", "jwt_jwks_path", "mapping_path"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise BadInputError(f"{PREFIX}{name.upper()}: there is no file {path}", "name one this user may read")
        for origin in self.origins:
            if origin == "*" or "://" not in origin or origin.endswith("/"):
                raise BadInputError(
                    f"{PREFIX}CORS_ORIGINS: {origin} is no origin", "https://app.example, no path, no *"
                )
        return self

    def _check_tokens(self) -> None:
        ways = [bool(self.jwt_jwks_url), bool(self.jwt_jwks_path), bool(self.jwt_shared_key.get_secret_value())]
        if not any(ways):
            return
        if sum(ways) > 1:
            raise BadInputError(
                "session tokens have more than one source of keys",
                f"set one of {PREFIX}JWT_JWKS_URL, {PREFIX}JWT_JWKS_PATH, {PREFIX}JWT_SHARED_KEY",
            )
        shared = self.jwt_shared_key.get_secret_value()
        if shared and len(shared.encode()) < SHARED_KEY_BYTES_MIN:
            raise BadInputError(
                f"{PREFIX}JWT_SHARED_KEY is too short", f"it needs {SHARED_KEY_BYTES_MIN} bytes or more"
            )
        # A public key used as a shared one would let any client sign: the two families are never mixed.
        allowed = SYMMETRIC if shared else ASYMMETRIC
        for algorithm in self.algorithms:
            if algorithm not in allowed:
                raise BadInputError(
                    f"{PREFIX}JWT_ALGORITHMS: {algorithm} does not go with these keys", f"of {', '.join(allowed)}"
                )
        for name in ("jwt_issuer", "jwt_audience"):
            if not getattr(self, name):
                raise BadInputError(
                    f"{PREFIX}{name.upper()} is not set", "a token for another service would be taken; name it"
                )
        if self.jwt_jwks_url and not self.jwt_jwks_url.startswith(("https://", "http://")):
            raise BadInputError(f"{PREFIX}JWT_JWKS_URL is no URL", "https://…/.well-known/jwks.json")

    @property
    def tokens_configured(self) -> bool:
        """Whether session tokens can be verified at all; if not, the browser's status endpoint answers 401."""
        return bool(self.jwt_jwks_url or self.jwt_jwks_path or self.jwt_shared_key.get_secret_value())

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The signatures that are accepted, and no others."""
        if self.jwt_algorithms:
            return _words(self.jwt_algorithms)
        return ("HS256",) if self.jwt_shared_key.get_secret_value() else ("RS256", "ES256")

    @property
    def origins(self) -> tuple[str, ...]:
        """Origins of the pages that may show the banner."""
        return _words(self.cors_origins)

    def credentials(self) -> tuple[tuple[str, str], ...]:
        """Return users and passwords; raises BadInputError if there are none, or one is no use."""
        found: list[tuple[str, str]] = []
        for word in self.basic_credentials.get_secret_value().split():
            user, colon, password = word.partition(":")
            if not user or not colon or len(password) < PASSWORD_LENGTH_MIN or not user.isprintable():
                shown = user[:40] if colon else "(no colon)"
                raise BadInputError(
                    f"{PREFIX}BASIC_CREDENTIALS: entry {len(found) + 1} ({shown}) is not user:password",
                    f"a password has {PASSWORD_LENGTH_MIN} characters or more, none of them a blank",
                )
            found.append((user, password))
        if not found:
            raise BadInputError(
                f"{PREFIX}BASIC_CREDENTIALS is not set",
                "export user:password, or name a file with it in CRM_CONTROL_BASIC_CREDENTIALS_FILE",
            )
        return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
