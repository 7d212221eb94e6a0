"""Authentication: Basic credentials of services and operators, and session tokens of the customer's browser."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import jwt
import orjson
from jwt import PyJWK

from ops.control.settings import ControlSettings
from schemas.topics import ACCOUNT_LENGTH_MAX

log = logging.getLogger(__name__)

BASIC_LENGTH_MAX = 1_024
TOKEN_LENGTH_MAX = 8_192
JWKS_BYTES_MAX = 1024 * 1024
JWKS_TIMEOUT_S = 5.0
JWKS_STALE_MAX_S = 24 * 3600.0  # keys on hand are used for so long while their publisher does not answer
KEYS_TRIED_MAX = 8  # of a token that does not name its key
RSA_BITS_MIN = 2048
FILE_CHECK_EVERY_S = 1.0
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}


class InvalidTokenError(Exception):
    """The session token is not valid; the text is for the client and has no internal details."""


class KeysUnavailableError(Exception):
    """No key for verification is available: the token is neither valid nor invalid."""


# ---- Basic -----------------------------------------------------------------------------------------------------------


class BasicCredentials:
    """Checks a user and password. Constant time: every check costs the same, whatever differs."""

    def __init__(self, credentials: Iterable[tuple[str, str]]) -> None:
        """A user may be there twice, with the old and the new password."""
        self._known = [(user, _digest(user), _digest(password)) for user, password in credentials]

    def user_of(self, user: str, password: str) -> str | None:
        """Return the user whose password it is, or None."""
        user_digest, password_digest = _digest(user), _digest(password)
        found = None
        for name, known_user, known_password in self._known:  # all of them: an early end would reveal which one it was
            same_user = hmac.compare_digest(known_user, user_digest)
            same_password = hmac.compare_digest(known_password, password_digest)
            if same_user & same_password:
                found = name
        return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def basic_of(header: bytes) -> tuple[str, str] | None:
    """Return user and password of an `Authorization` header, or None if it is not Basic or cannot be read."""
    scheme, _, encoded = header.partition(b" ")
    if scheme.lower() != b"basic" or len(header) > BASIC_LENGTH_MAX:
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


# ---- session tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """The claims of a verified session token."""

    company_sso_id: str
    permissions: frozenset[str]


class Keys(Protocol):
    """Where the keys are that tokens are verified with."""

    async def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """Return the keys that may have signed; raises KeysUnavailableError if none could be had at all."""
        ...


class SessionTokens:
    """Verifies session tokens: signature, algorithm, `exp`, `nbf`, `iss`, `aud`; reads tenant and permissions."""

    def __init__(self, settings: ControlSettings, keys: Keys) -> None:
        """`settings` give algorithms, issuer, audience and names of claims."""
        self._settings = settings
        self._algorithms = frozenset(settings.algorithms)
        self._keys = keys

    async def session_of(self, token: str) -> BrowserSession:
        """Return the token's claims; raises InvalidTokenError or KeysUnavailableError."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise InvalidTokenError("the session token is too long")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise InvalidTokenError("the session token is not a signed JWT") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        # An attacker can write the header: it only chooses among the algorithms of the settings.
        if not isinstance(algorithm, str) or algorithm not in self._algorithms or "crit" in header:
            raise InvalidTokenError("the session token is not signed in a way that is accepted")
        candidates = await self._keys.candidates(key_id if isinstance(key_id, str) else None, algorithm)
        return self._session(self._claims(token, algorithm, candidates))

    def _claims(self, token: str, algorithm: str, candidates: Sequence[Any]) -> Mapping[str, Any]:
        for key in candidates[:KEYS_TRIED_MAX]:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._settings.jwt_audience,
                    issuer=self._settings.jwt_issuer,
                    leeway=self._settings.jwt_leeway_s,
                    options={"require": ["exp", "iss", "aud"], "verify_sub": False},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.ExpiredSignatureError:
                raise InvalidTokenError("the session has expired") from None
            except jwt.ImmatureSignatureError:
                raise InvalidTokenError("the session has not begun yet") from None
            except (jwt.InvalidTokenError, ValueError, TypeError):
                raise InvalidTokenError("the session token is not for this service") from None
        raise InvalidTokenError("the session token is not signed by a key that is known")

    def _session(self, claims: Mapping[str, Any]) -> BrowserSession:
        tenant = claims.get(self._settings.jwt_tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= ACCOUNT_LENGTH_MAX:
            raise InvalidTokenError("the session token names no tenant")
        permissions = claims.get(self._settings.jwt_permissions_claim, [])
        if isinstance(permissions, str):
            permissions = permissions.split()
        if not isinstance(permissions, list):
            permissions = []
        return BrowserSession(tenant, frozenset(word for word in permissions if isinstance(word, str)))


class SharedKey:
    """One key that both sides have."""

    def __init__(self, key: str) -> None:
        """`key` is long enough, the settings have seen to it."""
        self._key = key.encode()

    async def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:  # noqa: ARG002
        """Return the key."""
        return (self._key,)


class PublicKeys:
    """A JSON Web Key Set that is loaded again when it is old, and when a token names a key that is not in it."""

    def __init__(
        self,
        load: Callable[[], Awaitable[bytes]],
        *,
        cache_s: float,
        refetch_min_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`load` is a coroutine function that returns the set as JSON; it may raise OSError, ValueError or httpx's."""
        self._load = load
        self._cache_s = cache_s
        self._refetch_min_s = refetch_min_s
        self._clock = clock
        self._keys: list[PyJWK] | None = None
        self._loaded_at = self._tried_at = float("-inf")
        self._loading = asyncio.Lock()

    async def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """Return the keys that fit, the named one alone if there is one of that name."""
        now = self._clock()
        if now - self._loaded_at > self._cache_s and not (self._keys is not None and self._loading.locked()):
            await self._reload(now)  # one request waits for it; concurrent ones use the cached keys
        found = self._fitting(key_id, algorithm)
        if not found:  # the publisher may have a new key; a forged name costs one request now and then
            await self._reload(now)
            found = self._fitting(key_id, algorithm)
        return found

    async def _reload(self, requested_at: float) -> None:
        """Load the set again unless another request just did, or it was tried a moment ago."""
        async with self._loading:
            now = self._clock()
            if self._tried_at < requested_at and now - self._tried_at >= self._refetch_min_s:
                self._tried_at = now
                try:
                    self._keys = keys_in(await self._load())
                    self._loaded_at = self._tried_at = self._clock()
                except (OSError, ValueError, httpx.HTTPError) as error:
                    log.warning("the session tokens' keys could not be loaded (%s)", type(error).__name__)
            if self._keys is None or now - self._loaded_at > max(self._cache_s, JWKS_STALE_MAX_S):
                raise KeysUnavailableError

    def _fitting(self, key_id: str | None, algorithm: str) -> list[Any]:
        fitting = [key for key in self._keys or () if fits(key, algorithm)]
        return [key.key for key in fitting if key_id is None or key.key_id == key_id]


def keys_in(document: bytes) -> list[PyJWK]:
    """Return the usable public keys of a JSON Web Key Set. Raises ValueError if it is none, or none is usable."""
    parsed = orjson.loads(document)
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a JSON Web Key Set")
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
            continue  # never a symmetric key: it would be public
        if entry.get("use", "sig") != "sig":
            continue
        try:
            key = PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # of a kind we do not know; the others may do
        if entry["kty"] == "RSA" and key.key.key_size < RSA_BITS_MIN:
            continue
        found.append(key)
    if not found:
        raise ValueError("no usable key in the JSON Web Key Set")
    return found


def fits(key: PyJWK, algorithm: str) -> bool:
    """Return whether a key can have made such a signature; one that names its algorithm makes no other."""
    data: Mapping[str, Any] = key._jwk_data  # noqa: SLF001 - the set's own words; PyJWK shows only what it made of them
    if "alg" in data:
        return bool(data["alg"] == algorithm)
    if algorithm.startswith(("RS", "PS")):
        return bool(data["kty"] == "RSA")
    if algorithm.startswith("ES"):
        return bool(data["kty"] == "EC" and data.get("crv") == _CURVES[algorithm])
    return bool(data["kty"] == "OKP")


class JwksFile:
    """Reads the key set from a file."""

    def __init__(self, path: str) -> None:
        """`path` is checked whenever PublicKeys reloads."""
        self._path = Path(path)

    async def __call__(self) -> bytes:
        """Return the file's bytes."""
        return await asyncio.to_thread(self._path.read_bytes)


class JwksUrl:
    """Fetches the key set over HTTP."""

    def __init__(self, url: str) -> None:
        """`url` is the operator's, not a token's."""
        self._url = url

    async def __call__(self) -> bytes:
        """Return the answer's body; raises httpx's errors, or ValueError for one that is too long."""
        async with (
            httpx.AsyncClient(timeout=JWKS_TIMEOUT_S) as client,
            client.stream("GET", self._url, headers={"accept": "application/json"}) as answer,
        ):
            answer.raise_for_status()
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > JWKS_BYTES_MAX:
                    raise ValueError("the JSON Web Key Set is too long")
            return body


def tokens_of(settings: ControlSettings) -> SessionTokens | None:
    """Return the verifier of session tokens, or None without keys."""
    if not settings.tokens_configured:
        return None
    if shared := settings.jwt_shared_key.get_secret_value():
        return SessionTokens(settings, SharedKey(shared))
    if settings.jwt_jwks_path:
        # A file is cheap to read and cannot be flooded: a rotation shows within a second.
        keys = PublicKeys(
            JwksFile(settings.jwt_jwks_path), cache_s=FILE_CHECK_EVERY_S, refetch_min_s=FILE_CHECK_EVERY_S / 2
        )
    else:
        keys = PublicKeys(
            JwksUrl(settings.jwt_jwks_url), cache_s=settings.jwks_cache_s, refetch_min_s=settings.jwks_refetch_min_s
        )
    return SessionTokens(settings, keys)
