"""What object storage answers when it does not do what was asked, against a real server, a closed and a silent port."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from diffssl.store import StoreError, connection
from diffssl.store.object_storage import ObjectStorage

S3 = Any  # of tests/conftest.py

ADVICE = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION .* AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(connection, "RETRY_UPLOAD_SECONDS", 0.2)


@pytest.fixture
def port() -> Iterator[int]:
    """A port where connections are taken and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def all_calls(storage: ObjectStorage) -> list[Callable[[], object]]:
    return [
        lambda: storage.read("a"),
        lambda: storage.read_into("a", 0, [memoryview(bytearray(1))]),
        lambda: storage.read_pieces("a", [(0, memoryview(bytearray(1)))]),
        lambda: storage.read_array("a"),
        lambda: storage.create("a", b"1"),
        lambda: storage.check_create(),
        lambda: storage.replace({"a": [b"1"]}),
        lambda: storage.exists("a"),
        lambda: storage.size("a"),
        lambda: storage.names(""),
        lambda: storage.folders(""),
        lambda: storage.usage(),
    ]


def refused(ask: Callable[[], object], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        ask()
    assert "Debug source" not in str(caught.value)


@pytest.mark.usefixtures("s3")
def test_there_is_no_bucket() -> None:
    storage = ObjectStorage("s3://no-such-bucket/x")
    message = (
        r"^s3://no-such-bucket/x: there is no such bucket \(NoSuchBucket: The specified .*\); create it, or correct the URL$"
    )
    for ask in (lambda: storage.read("a"), lambda: storage.names(""), lambda: storage.usage()):
        refused(ask, message)
    refused(lambda: storage.create("a", b"1"), message)
    refused(lambda: storage.replace({"a": [b"1"]}), message)


def test_the_credentials_are_wrong(s3: S3) -> None:
    storage = ObjectStorage(f"{s3.bucket()}/x")

    def check_credentials(after_requests: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{s3.endpoint}/moto-api/reset-auth", after_requests, headers)
        urllib.request.urlopen(request).close()

    check_credentials(b"0")
    try:
        for ask in all_calls(storage):
            refused(ask, f": the storage refuses the credentials for this .*; {ADVICE}")
        refused(lambda: storage.read("a"), r"\(InvalidAccessKeyId: The AWS Access Key Id you provided does not exist")
    finally:
        check_credentials(b"inf")
    assert not storage.exists("a")


@pytest.mark.usefixtures("s3", "impatient")
def test_there_are_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:{1}".format(*server.getsockname()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    refused(lambda: ObjectStorage("s3://bucket/x").read("a"), f"^s3://bucket/x: no credentials are set .*; {ADVICE}")


def test_plain_http_must_be_allowed(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{s3.bucket()}/x"
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    refused(lambda: ObjectStorage(url).read("a"), f": the address cannot be used .*; {ADVICE}")


@pytest.mark.usefixtures("s3", "impatient")
def test_a_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:{1}".format(*server.getsockname()))
    for ask in all_calls(ObjectStorage("s3://bucket/x")):
        refused(ask, f"^s3://bucket/x: the storage does not answer .*; {ADVICE}")


@pytest.mark.usefixtures("s3", "impatient")
def test_a_silent_port(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(connection._WAIT, "read_timeout", "1s")
    started = time.perf_counter()
    refused(lambda: ObjectStorage("s3://bucket/x").read("a"), "^s3://bucket/x: the storage does not answer")
    assert 0.9 < time.perf_counter() - started < 20


def test_a_dead_endpoint_is_given_up_within_half_a_minute() -> None:
    """The last try starts before ``RETRY_SECONDS`` are over, and waits for a connection or for the first answer."""
    wait = {name: int(text.removesuffix("s")) for name, text in connection._WAIT.items() if text.endswith("s")}
    assert connection.RETRY_SECONDS + wait["connect_timeout"] <= 30
    assert wait["read_timeout"] >= connection.RETRY_SECONDS  # so that one silence is the last
    assert wait["connect_timeout"] + wait["read_timeout"] <= 30


@pytest.mark.usefixtures("s3", "impatient")
def test_timeouts_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_READ_TIMEOUT", "1s")
    refused(lambda: ObjectStorage("s3://bucket/x").read("a"), "the storage does not answer")


@pytest.mark.usefixtures("s3")
def test_settings_that_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "soon")
    refused(lambda: ObjectStorage("s3://bucket/x"), "^s3://bucket/x: .*soon")


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///x",
        "s3://bucket//x",
        "s3://bucket/x//",
        "s3://bucket/../x",
        "s3://bucket/x?versionId=3",
        "s3://bucket/x#1",
        "s3://localhost:9000/bucket/x",
        "s3://id:key@bucket/x",
    ],
)
def test_urls_that_would_be_taken_for_others_are_refused(url: str) -> None:
    refused(lambda: ObjectStorage(url), f"^{re.escape(url)}: a store's URL is s3://BUCKET/NAME, without")
