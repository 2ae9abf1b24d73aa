"""Reads the inputs of batches from buckets other than the store's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minio import Minio
from minio.error import S3Error

from activities.store.object_store import ObjectNotFoundError
from activities.store.s3_client import GONE, ObjectBody, failing

_NOT_OURS: Final = (*GONE, "NoSuchBucket", "AccessDenied")


class S3Inputs:
    def __init__(self, client: Minio) -> None:
        self._client = client

    def stream(self, bucket: str, name: str) -> Iterator[bytes]:
        """Return an object's bytes in chunks. Blocks.

        Raises:
            ObjectNotFoundError: from this call, if the object does not exist or may not be read.
            StoreError: from this call or while the chunks are read, if the server cannot be used.
        """
        with failing("an input"):
            try:
                response = self._client.get_object(bucket_name=bucket, object_name=name)
            except S3Error as error:
                if error.code in _NOT_OURS:
                    raise ObjectNotFoundError("an input") from None
                raise
        return ObjectBody("an input", response, None)
