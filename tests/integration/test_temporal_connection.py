"""Temporal is found by the SDK's own variables and profiles, TLS among them."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from temporalio.client import Client

from activities.temporal.connection import connect, temporal_address


@dataclass(frozen=True)
class Certificates:
    """An authority, and what it has signed for 127.0.0.1, to serve with and to come with."""

    authority: Path
    certificate: Path
    key: Path


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    signer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    made.authority.write_bytes(_certificate("authority", signer.public_key(), signer, is_authority=True))
    made.certificate.write_bytes(_certificate("everbatch tests", key.public_key(), signer, is_authority=False))
    made.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return made


@contextlib.asynccontextmanager
async def behind_tls(target: str, certificates: Certificates) -> AsyncGenerator[str]:
    """The address of a front that speaks TLS, asks its clients for a certificate, and passes all to ``target``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.load_verify_locations(certificates.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    host, port = target.split(":")
    open_connections: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(host, int(port))
        for pair in ((reader, to_writer), (to_reader, writer)):
            task = asyncio.create_task(pump(*pair))
            open_connections.add(task)
            task.add_done_callback(open_connections.discard)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for task in list(open_connections):
        task.cancel()
    await asyncio.gather(*open_connections, return_exceptions=True)


async def test_tls_with_a_client_certificate_by_variables(
    temporal: Client, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with behind_tls(temporal.service_client.config.target_host, certificates) as address:
        monkeypatch.setenv("TEMPORAL_ADDRESS", address)
        monkeypatch.setenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH", str(certificates.authority))
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_CERT_PATH", str(certificates.certificate))
        monkeypatch.setenv("TEMPORAL_TLS_CLIENT_KEY_PATH", str(certificates.key))
        assert temporal_address() == address
        assert await (await connect()).service_client.check_health()
        monkeypatch.delenv("TEMPORAL_TLS_SERVER_CA_CERT_PATH")
        with pytest.raises(RuntimeError):
            await connect()  # whose certificate nobody has signed


async def test_a_profile_of_temporals_own_configuration(
    temporal: Client, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with behind_tls(temporal.service_client.config.target_host, certificates) as address:
        (tmp_path / "temporal.toml").write_text(
            f'[profile.prod]\naddress = "{address}"\nnamespace = "default"\n'
            f'[profile.prod.tls]\nserver_ca_cert_path = "{certificates.authority}"\n'
            f'client_cert_path = "{certificates.certificate}"\nclient_key_path = "{certificates.key}"\n'
        )
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(tmp_path / "temporal.toml"))
        monkeypatch.setenv("TEMPORAL_PROFILE", "prod")
        client = await connect()
        assert client.namespace == "default"
        assert await client.service_client.check_health()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TEMPORAL_PROFILE", "nowhere", "Profile 'nowhere' not found"),
        ("TEMPORAL_TLS_CLIENT_CERT_PATH", "/nowhere.pem", "No such file"),
    ],
)
async def test_a_configuration_that_cannot_be_is_an_error_and_no_wait(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words):
        await connect()
    with pytest.raises(ValueError, match=words):
        temporal_address()
