"""The S3 client, and the translation of its errors.

Error texts name the key and a reason of ours, never a URL, a credential or what the server said in full; and no
cause is chained to them, because Temporal keeps causes too.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import Generator, Iterator
from typing import Any, Final
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.error import MinioException, S3Error, ServerError
from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)

from activities.store.object_store import CHUNK, STORE_THREADS, ObjectNotFoundError, StoreError

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 60.0
"""Silence after which the server counts as hanging. It may need so long to put a large object together."""

GONE: Final = ("NoSuchKey", "NoSuchVersion")
_CODE: Final = re.compile(r"[A-Za-z0-9]{1,60}")

_CODES: Final = {
    "AccessDenied": "access denied",
    "InvalidAccessKeyId": "the access key is unknown, see EVERBATCH_S3_ACCESS_KEY",
    "XAdminUserNotFound": "the access key is unknown, see EVERBATCH_S3_ACCESS_KEY",  # versitygw's own
    "SignatureDoesNotMatch": "the secret key is wrong, see EVERBATCH_S3_SECRET_KEY",
    "AuthorizationHeaderMalformed": "the region is wrong, see EVERBATCH_S3_REGION",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NoSuchBucket": "the bucket does not exist",
}
_CONDITIONS: Final = {
    "XMinioStorageFull": "its disk is full",
    "QuotaExceeded": "its quota is used up",
    "XMinioAdminBucketQuotaExceeded": "its quota is used up",
}
_BROKEN: Final[tuple[tuple[type[HTTPError], str], ...]] = (
    (NameResolutionError, "its host name does not resolve"),
    (ConnectTimeoutError, "no connection in time"),
    (NewConnectionError, "no connection"),
    (ReadTimeoutError, "no answer in time"),
    (SSLError, "no trusted TLS connection"),
    (IncompleteRead, "the response was incomplete"),
    (ProtocolError, "the connection broke"),
)


def reason_of_code(code: str | None) -> str:
    """Words for an error code of S3."""
    return _CODES.get(code or "") or (code if code and _CODE.fullmatch(code) else "a response that is not from S3")


def _reason(error: Exception) -> str:
    if isinstance(error, S3Error):
        return reason_of_code(error.code)
    if isinstance(error, ServerError):
        return f"HTTP {error.status_code}"
    if isinstance(error, MaxRetryError) and error.reason:
        return _reason(error.reason)
    if isinstance(error, ProtocolError) and len(error.args) > 1 and isinstance(error.args[1], IncompleteRead):
        return _reason(error.args[1])
    return next((text for kind, text in _BROKEN if isinstance(error, kind)), "a response that is not from S3")


@contextlib.contextmanager
def failing(key: str) -> Generator[None]:
    """Whatever the library raises inside becomes a :class:`StoreError`."""
    try:
        yield
    except S3Error as error:
        if error.code in GONE:
            raise ObjectNotFoundError(key) from None
        raise StoreError.at(key, _reason(error), _CONDITIONS.get(error.code or "", "")) from None
    # The library lets errors of its parsers through as they are, and of the socket now and then.
    except (MinioException, HTTPError, ParseError, ValueError, OSError) as error:
        raise StoreError.at(key, _reason(error)) from None


class ObjectBody:
    """An object's bytes. Whoever closes or drops it, read to its end or not, gives the connection back."""

    def __init__(self, key: str, response: BaseHTTPResponse, left: int | None) -> None:
        self._key = key
        self._response = response
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = b""
        if self._left != 0:
            with failing(self._key):  # also where the body is shorter than was announced
                data = self._response.read(CHUNK if self._left is None else min(CHUNK, self._left))
        if not data:
            self.close()
            raise StopIteration
        if self._left is not None:
            self._left -= len(data)
        return data

    def close(self) -> None:
        # A connection with unread bytes is closed, and made anew by whoever gets it next.
        self._response.close()
        self._response.release_conn()

    def __del__(self) -> None:
        self.close()


class _RetryOnceIfBroken(Retry):
    """A kept connection may turn out to be closed: then once more. All else is for Temporal to try again."""

    def increment(self, *arguments: Any, **options: Any) -> Retry:
        error = options.get("error")
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(*arguments, **options)


def connect(endpoint: str, access_key: str, secret_key: str, region: str, secure: bool) -> Minio:
    """A client that has not sent anything yet.

    Raises:
        ValueError: the endpoint or the region cannot be one.
    """
    if "://" in endpoint:
        raise ValueError("it must be a host or host:port without http://; EVERBATCH_S3_SECURE chooses TLS")
    pool = PoolManager(
        maxsize=2 * STORE_THREADS,  # a thread may read one object while it writes another
        timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=_RetryOnceIfBroken(total=1, connect=0, redirect=False, status=0, other=0),
        ssl_context=ssl.create_default_context(),  # the system's certificates, or SSL_CERT_FILE and SSL_CERT_DIR
    )
    return Minio(
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
        region=region,
        secure=secure,
        http_client=pool,
    )
