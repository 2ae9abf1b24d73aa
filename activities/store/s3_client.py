"""The S3 client, and the translation of its errors.

Error texts contain the key and a reason worded here, and never a URL, a credential or the full text of the server. They
are raised without a cause, because Temporal stores causes too.
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
"""Seconds without data after which the server counts as hanging. Composing a large object may take that long."""

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
    """Return the text for an error code of S3."""
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
    """Turn the library's errors within the context into a :class:`StoreError` about this key."""
    try:
        yield
    except S3Error as error:
        if error.code in GONE:
            raise ObjectNotFoundError(key) from None
        raise StoreError.at(key, _reason(error), _CONDITIONS.get(error.code or "", "")) from None
    # The library does not wrap the errors of its parsers, and sometimes not those of the socket.
    except (MinioException, HTTPError, ParseError, ValueError, OSError) as error:
        raise StoreError.at(key, _reason(error)) from None


class ObjectBody:
    """Iterates over an object's bytes. Closing or dropping the iterator releases the connection, at any point."""

    def __init__(self, key: str, response: BaseHTTPResponse, left: int | None) -> None:
        self._key = key
        self._response = response
        self._left = left

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = b""
        if self._left != 0:
            with failing(self._key):  # including a body that is shorter than announced
                data = self._response.read(CHUNK if self._left is None else min(CHUNK, self._left))
        if not data:
            self.close()
            raise StopIteration
        if self._left is not None:
            self._left -= len(data)
        return data

    def close(self) -> None:
        # A connection with unread bytes is closed; the pool opens a new one when it is next used.
        self._response.close()
        self._response.release_conn()

    def __del__(self) -> None:
        self.close()


class _RetryOnceIfBroken(Retry):
    """Retries once if a pooled connection turns out to be closed. All other retries are left to Temporal."""

    def increment(self, *arguments: Any, **options: Any) -> Retry:
        error = options.get("error")
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(*arguments, **options)


def connect(endpoint: str, access_key: str, secret_key: str, region: str, secure: bool) -> Minio:
    """Return a client. It sends nothing yet.

    Raises:
        ValueError: the endpoint or the region is not valid.
    """
    if "://" in endpoint:
        raise ValueError("it must be a host or host:port without http://; EVERBATCH_S3_SECURE chooses TLS")
    pool = PoolManager(
        maxsize=4 * STORE_THREADS,  # of two event loops; a thread may read one object while it writes another
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
