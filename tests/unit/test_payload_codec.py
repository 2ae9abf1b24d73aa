"""Sealing what crosses Temporal."""

from __future__ import annotations

import base64
import os

import pytest
from temporalio.api.common.v1 import Payload

from activities.temporal.payload_codec import ENCODING, AesGcmCodec, EncryptedPayloadError, data_converter, parse_keys
from workflows.types import Counts

CLEAR = Payload(metadata={"encoding": b"json/plain"}, data=b'{"canary": 1}')


def key() -> bytes:
    return os.urandom(32)


def text(*keys: bytes) -> str:
    return ", ".join(base64.b64encode(key).decode() for key in keys)


def test_keys_are_read_in_order() -> None:
    first, second = key(), key()
    assert parse_keys(text(first, second)) == [first, second]
    assert parse_keys("") == []


@pytest.mark.parametrize("bad", ["secret", "c2VjcmV0", "A" * 24, "ä" * 44], ids=["text", "short", "half", "no ASCII"])
def test_what_is_no_key_is_refused_without_showing_it(bad: str) -> None:
    with pytest.raises(ValueError, match="key 2 is not base64 of 32 bytes") as refused:
        parse_keys(f"{text(key())},{bad}")
    assert bad not in str(refused.value)


async def test_a_sealed_payload_shows_nothing_and_opens() -> None:
    codec = AesGcmCodec([key()])
    (sealed,) = await codec.encode([CLEAR])
    assert sealed.metadata["encoding"] == ENCODING
    assert b"canary" not in sealed.SerializeToString()
    assert b"json/plain" not in sealed.SerializeToString()
    assert await codec.decode([sealed]) == [CLEAR]


async def test_the_same_payload_is_sealed_differently_each_time() -> None:
    codec = AesGcmCodec([key()])
    first, second = await codec.encode([CLEAR, CLEAR])
    assert first.data != second.data


async def test_a_rotated_key_still_opens_and_no_longer_seals() -> None:
    old, new = key(), key()
    (sealed,) = await AesGcmCodec([old]).encode([CLEAR])
    rotated = AesGcmCodec([new, old])
    assert await rotated.decode([sealed]) == [CLEAR]
    (again,) = await rotated.encode([CLEAR])
    with pytest.raises(EncryptedPayloadError, match=r"payload key .* is not configured"):
        await AesGcmCodec([old]).decode([again])


async def test_what_was_in_the_clear_before_passes() -> None:
    assert await AesGcmCodec([key()]).decode([CLEAR]) == [CLEAR]


async def test_a_changed_payload_is_refused() -> None:
    codec = AesGcmCodec([key()])
    (sealed,) = await codec.encode([CLEAR])
    for data in (sealed.data[:-1] + bytes([sealed.data[-1] ^ 1]), sealed.data[:5], b""):
        with pytest.raises(EncryptedPayloadError, match="modified"):
            await codec.decode([Payload(metadata=sealed.metadata, data=data)])


async def test_models_and_failures_go_through_the_converter() -> None:
    converter = data_converter([key()])
    (payload,) = await converter.encode([Counts(total=7)])
    assert payload.metadata["encoding"] == ENCODING
    assert await converter.decode([payload], [Counts]) == [Counts(total=7)]
    assert data_converter([]).payload_codec is None
