"""Encryption of Temporal payloads, so that Temporal's database and its operators see only ciphertext.

Bodies never enter Temporal in any case. Metadata of batches, custom_ids and reasons of failures do; if a key is
configured, they are encrypted with AES-256-GCM before they leave the process. Workflow ids, names of types and queues,
and search attributes (tenant, endpoint, status) are never encrypted, because Temporal itself reads them.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes, PayloadCodec

ENCODING: Final = b"binary/encrypted"
"""The encoding name that Temporal's own encryption samples use."""
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class EncryptedPayloadError(Exception):
    """A payload cannot be decrypted: its key is not configured, or it was modified."""


def parse_keys(text: str) -> list[bytes]:
    """Parse ``EVERBATCH_PAYLOAD_KEY``: keys of 32 bytes each in base64, separated by commas.

    Raises:
        ValueError: a key is not valid. The message does not contain it.
    """
    keys: list[bytes] = []
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
        try:
            key = base64.b64decode(part, validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ValueError(
                f"key {number} is not base64 of {_KEY_BYTES} bytes; make one with: openssl rand -base64 32"
            )
        keys.append(key)
    return keys


def data_converter(keys: Sequence[bytes]) -> DataConverter:
    """Return the converter between models and payloads, with encryption if there are keys.

    All clients and workers must use the same keys.
    """
    if not keys:
        return pydantic_data_converter
    return dataclasses.replace(
        pydantic_data_converter,
        payload_codec=AesGcmCodec(keys),
        # Otherwise the texts of failures would not be encrypted.
        failure_converter_class=DefaultFailureConverterWithEncodedAttributes,
    )


class AesGcmCodec(PayloadCodec):
    """Encrypts with the first key and decrypts with any of them, so that keys can be rotated while batches run.

    Payloads that are not encrypted are passed through, so that encryption can be turned on while batches run.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._ciphers = {_key_id(key): AESGCM(key) for key in keys}
        self._encrypting = _key_id(keys[0])

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._encrypt(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Decrypt payloads.

        Raises:
            EncryptedPayloadError: a payload cannot be decrypted.
        """
        return [self._open(payload) for payload in payloads]

    def _encrypt(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        key_id = self._encrypting
        data = nonce + self._ciphers[key_id].encrypt(nonce, payload.SerializeToString(), key_id)
        return Payload(metadata={"encoding": ENCODING, "encryption-key-id": key_id}, data=data)

    def _open(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            return payload
        key_id = payload.metadata.get("encryption-key-id", b"")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise EncryptedPayloadError(f"payload key {key_id.decode('ascii', 'replace')[:16]} is not configured")
        nonce, encrypted = payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:]
        try:
            return Payload.FromString(cipher.decrypt(nonce, encrypted, key_id))
        except (InvalidTag, ValueError) as error:
            raise EncryptedPayloadError("an encrypted payload was modified") from error


def _key_id(key: bytes) -> bytes:
    """Return an id of a key that does not reveal the key."""
    return hashlib.sha256(b"everbatch payload key\0" + key).hexdigest()[:16].encode()
