"""Connections to object storage, and its answers as errors that say what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from .errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

# Requests are repeated for so long; with the timeouts below, an endpoint that is dead is given up within half a minute.
RETRY_SECONDS = 20.0
# An upload of a shard is one request, which a slow line may take minutes for; what it failed for is tried for longer.
RETRY_UPLOAD_SECONDS = 180.0

_WAIT = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "10m"}
# The time to send a body counts as waiting to read the answer.
_WAIT_UPLOAD = {"connect_timeout": "5s", "timeout": "10m"}

_PREFIXES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "read_timeout",
    "timeout",
    "user_agent",
)

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
# What a message contains -> what it means; the first that fits. Without credentials, a cloud's machines ask for "metadata".
_MEANINGS = (
    (("/latest/api/token", "/metadata/", "computeMetadata", "Account must be specified"), "no credentials are set"),
    (("403 Forbidden", "401 Unauthorized"), "the storage refuses the credentials for this"),
    (("builder error",), "the address cannot be used"),
    (("error sending request", "timed out"), "the storage does not answer"),
)
_ADVICE = {
    "s3": (
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (profiles are not read; "
        '`eval "$(aws configure export-credentials --format env)"` sets the keys from one); for another service than '
        "Amazon's also AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true if that is plain http"
    ),
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or log in with `gcloud auth`",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def checked(url: str) -> str:
    """A URL without the slash at its end. Raises ``StoreError`` for one that obstore would take for another, or not at all."""
    scheme, _, place = url.partition("://")
    parts = place.removesuffix("/").split("/")
    if scheme not in _PREFIXES or {"", ".", ".."} & set(parts) or set("?#") & set(place) or set(":@") & set(parts[0]):
        what = f"a store's URL is {scheme}://BUCKET/NAME, without a host, empty parts, '.', '..', '?' and '#'"
        raise StoreError(url, f"{what}; the host is set in the environment (AWS_ENDPOINT_URL)")
    return url.removesuffix("/")


def connect(url: str, upload: bool = False) -> ObjectStore:
    """An obstore store below a URL, its settings from the environment. Nothing is sent yet.

    Args:
        url: ``s3://…``, ``gs://…`` or ``az://…``.
        upload: be patient enough to send a shard over a slow line.

    Raises:
        StoreError: a setting means nothing.
    """
    seconds = RETRY_UPLOAD_SECONDS if upload else RETRY_SECONDS
    with translated(url):
        store: ObjectStore = from_url(
            url,
            client_options=_client_options(url, _WAIT_UPLOAD if upload else _WAIT),
            retry_config={
                "max_retries": 10,
                "retry_timeout": timedelta(seconds=seconds),
                "backoff": {"init_backoff": timedelta(seconds=min(0.5, seconds / 10))},
            },
        )
    return store


@contextmanager
def translated(url: str, name: str = "") -> Iterator[None]:
    """Turn what obstore raises into ``FileNotFoundError`` for an object that is not there, else into ``StoreError``."""
    try:
        yield
    except FileNotFoundError as error:
        if any(word in str(error) for word in _NO_BUCKET):
            raise StoreError(url, _message(url, error)) from error
        raise FileNotFoundError(errno.ENOENT, "there is no such object", f"{url}/{name}") from None
    except BaseError as error:
        raise StoreError(url, _message(url, error)) from error


def _client_options(url: str, waiting: dict[str, str]) -> ClientConfig:
    """Options of the client. Given any, obstore takes none from the environment, so those are taken here."""
    prefix = _PREFIXES[url.partition("://")[0]]
    environment = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in _CLIENT_OPTIONS}
    options: ClientConfig = {**waiting, **{name: value for name, value in environment.items() if value}}  # type: ignore[typeddict-item]
    return options


def _message(url: str, error: Exception) -> str:
    text = str(error)
    if any(word in text for word in _NO_BUCKET):
        return f"there is no such bucket ({_reason(text)}); create it, or correct the URL"
    if re.search(r"status code: 5\d\d", text):
        return f"the storage is down or overloaded ({_reason(text)}); try again later, what is committed is kept"
    meaning = next((meaning for words, meaning in _MEANINGS if any(word in text for word in words)), "a request failed")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        meaning = "the storage refuses the credentials for this"
    return f"{meaning} ({_reason(text)}); {_ADVICE[url.partition('://')[0]]}"


def _reason(text: str) -> str:
    """What the service says, or else the first line of what obstore does."""
    answer = re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL)
    return f"{answer[1]}: {answer[2]}" if answer else text.partition("\n")[0].rstrip(" :")
