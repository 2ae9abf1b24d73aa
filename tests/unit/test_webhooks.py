"""Which endpoints hear of what, what they are sent, and where it may not go."""

from __future__ import annotations

import base64
import json
import socket
import time
from pathlib import Path

import pytest
from openai import AsyncOpenAI, InvalidWebhookSignatureError, OpenAI
from pydantic import SecretStr, ValidationError

from activities.deliver_webhook import TargetRefusedError, is_public, public_socket
from activities.settings import Settings
from activities.webhooks import Endpoints, event_body, load_endpoints, signature
from tests.fakes.worker import BATCH, make_spec
from workflows.contract import WEBHOOK_EVENTS
from workflows.ids import event_id, webhook_id
from workflows.types import BatchPhase, BatchStatus
from workflows.webhook_types import WebhookInput

NO_SECRET = SecretStr("")
WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
RAW = "just-a-secret-é"


def read(folder: Path, text: str) -> Endpoints:
    file = folder / "webhooks.toml"
    file.write_text(text)
    return load_endpoints("", NO_SECRET, str(file))


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ValueError, match=r"webhooks\.toml") as caught:
        read(folder, text)
    return str(caught.value)


# The file


def test_a_file_of_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_B_SECRET", RAW)
    endpoints = read(
        tmp_path,
        f"""
        [[webhooks]]
        name = "all"
        url = "https://hooks.example/all"
        secrets = ["{WHSEC}", "old"]

        [[webhooks]]
        name = "team-a"
        url = "https://hooks.example/a?token=t"
        secret = "s"
        tenant = "a"
        events = ["batch.failed", "batch.expired"]

        [[webhooks]]
        name = "team-b"
        url = "http://b.example:8080"
        secret_env = "TEAM_B_SECRET"
        tenants = ["b", "c"]
        """,
    )
    assert [endpoints.names_for(tenant) for tenant in "abcd"] == [
        ["all", "team-a"],
        ["all", "team-b"],
        ["all", "team-b"],
        ["all"],
    ]
    everybody, team_a, team_b = (endpoints.find(name, name[-1]) for name in ("all", "team-a", "team-b"))
    assert everybody
    assert team_a
    assert team_b
    assert [secret.get_secret_value() for secret in everybody.secrets] == [WHSEC, "old"]
    assert [secret.get_secret_value() for secret in team_b.secrets] == [RAW]
    assert [team_a.wants(event) for event in WEBHOOK_EVENTS] == [False, True, False, True]
    assert all(team_b.wants(event) for event in WEBHOOK_EVENTS)
    assert endpoints.find("team-a", "b") is None, "another tenant's"
    assert endpoints.find("gone", "a") is None
    assert "token" not in repr(team_a)
    assert RAW not in repr(team_b)


def test_the_file_that_is_documented_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    monkeypatch.setenv("TEAM_A_WEBHOOK_SECRET", WHSEC)
    assert read(tmp_path, text.partition("```toml\n")[2].partition("```")[0]).names_for("team-a") == ["team-a"]


ENTRY = '[[webhooks]]\nname = "n"\nurl = "https://h.example"\nsecret = "s"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ENTRY + "x = \n", "line 5"),
        ("", "webhooks: is required"),
        ("webhooks = 1", "webhooks: Input should be a valid list"),
        (ENTRY + "[other]\n", "line 5: other: there is no such setting"),
        ("webhooks = [1]", "line 1: webhooks[0]: must be a table"),
        (ENTRY + 'urls = "x"', "webhooks n: urls"),
        (ENTRY + ENTRY.replace('"n"', '"a b"'), "line 6: webhooks a b: name: must be up to 64 letters"),
        (ENTRY + ENTRY, "two webhooks have the name n"),
        (ENTRY.replace("https", "ftp"), "webhooks n: url: is not an http"),
        (
            ENTRY.replace("h.example", "user:SECRET@h.example"),
            "webhooks n: url: must not contain a user name or password",
        ),
        (ENTRY.replace("h.example", "h.example:port"), "webhooks n: url: is not a URL"),
        (ENTRY.replace("https://h.example", "https://"), "webhooks n: url: is not an http"),
        (ENTRY.replace('"s"', '"whsec_SECRET!"'), "must continue in base64"),
        (ENTRY.replace('"s"', '""'), "the secret is empty"),
        (ENTRY.replace('"s"', "1"), "webhooks n: secret: Input should be a valid string"),
        (ENTRY.replace('secret = "s"', ""), "needs one of secret"),
        (ENTRY + 'secret_env = "SECRET"', "needs one of secret"),
        (ENTRY.replace("secret =", "secret_env ="), "the environment variable s is not set"),
        (ENTRY + 'events = ["batch.done"]', "events[0]: must be one of batch.completed"),
        (ENTRY + "events = []", "webhooks n: events"),
        (ENTRY + 'tenant = "a"\ntenants = ["b"]', "has both tenant and tenants"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(tmp_path, text)
    assert words in message
    assert "SECRET" not in message.replace("SECRET_", "")
    assert "\n" not in message


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.toml: No such file"):
        load_endpoints("", NO_SECRET, str(tmp_path / "no.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bytes\.toml: the file is not UTF-8"):
        load_endpoints("", NO_SECRET, str(tmp_path / "bytes.toml"))


# The settings


def test_one_endpoint_by_settings_is_for_everybody(tmp_path: Path) -> None:
    assert not Settings.model_validate({}).webhook_endpoints()
    file = tmp_path / "webhooks.toml"
    file.write_text(ENTRY)
    settings = Settings.model_validate(
        {"webhook_url": "https://h.example/x", "webhook_secret": WHSEC, "webhooks_file": str(file)}
    )
    endpoints = settings.webhook_endpoints()
    assert endpoints.names_for("anybody") == ["default", "n"]
    default = endpoints.find("default", "anybody")
    assert default
    assert default.url.get_secret_value() == "https://h.example/x"
    assert WHSEC not in repr(settings)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"webhook_url": "https://h.example"}, "belong together"),
        ({"webhook_secret": "s"}, "belong together"),
        ({"webhook_url": "h.example", "webhook_secret": "s"}, "is not an http"),
        ({"webhook_url": "https://h.example", "webhook_secret": "whsec_*"}, "must continue in base64"),
        ({"webhooks_file": "/nowhere/webhooks.toml"}, "No such file"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings.model_validate(values)


# What is sent


def sent(secrets: list[str], phase: BatchPhase, timestamp: int) -> tuple[bytes, dict[str, str]]:
    spec = make_spec(webhooks=["n"])
    status = BatchStatus(phase=phase).model_copy(update={f"{phase.value}_at": 1_700_000_009})
    task = WebhookInput.of(spec, status)
    body = event_body(event_id(BATCH), task.event, task.created_at, BATCH)
    delivery = webhook_id(BATCH, "n")
    signed = signature([SecretStr(secret) for secret in secrets], delivery, timestamp, body)
    return body, {"webhook-id": delivery, "webhook-timestamp": str(timestamp), "webhook-signature": signed}


@pytest.mark.parametrize("phase", [BatchPhase.COMPLETED, BatchPhase.FAILED, BatchPhase.CANCELLED, BatchPhase.EXPIRED])
@pytest.mark.parametrize("secret", [WHSEC, RAW])
async def test_the_stock_client_unwraps_the_event(secret: str, phase: BatchPhase, now: int) -> None:
    body, headers = sent([secret], phase, now)
    event = OpenAI(api_key="k", webhook_secret=secret).webhooks.unwrap(body, headers)
    assert event == await unwrapped_async(body, headers, secret)
    assert event.type == f"batch.{phase}"
    assert (event.object, event.created_at) == ("event", 1_700_000_009)
    assert event.data.id == BATCH  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - of the types of other events
    assert type(event).__name__ == f"Batch{phase.value.title()}WebhookEvent"
    assert json.loads(body)["id"] == event_id(BATCH)
    assert event_id(BATCH).startswith("evt_")
    assert headers["webhook-id"].startswith("wh_")


async def unwrapped_async(body: bytes, headers: dict[str, str], secret: str) -> object:
    async with AsyncOpenAI(api_key="k") as client:
        return client.webhooks.unwrap(body, headers, secret=secret)


def test_while_secrets_rotate_the_holders_of_both_can_verify(now: int) -> None:
    body, headers = sent([WHSEC, RAW], BatchPhase.COMPLETED, now)
    webhooks = OpenAI(api_key="k").webhooks
    for secret in (WHSEC, RAW):
        webhooks.verify_signature(body, headers, secret=secret)
    for secret, payload in (("another", body), (RAW, body + b" ")):
        with pytest.raises(InvalidWebhookSignatureError):
            webhooks.verify_signature(payload, headers, secret=secret)


def test_a_delivery_has_an_id_for_each_endpoint() -> None:
    assert webhook_id(BATCH, "a") == webhook_id(BATCH, "a")
    assert len({webhook_id(BATCH, "a"), webhook_id(BATCH, "b"), webhook_id("batch_2", "a"), event_id(BATCH)}) == 4


# Where it may go


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "192.0.0.8",
        "192.88.99.1",
        "192.0.2.1",
        "198.18.0.1",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "3fff::1",
        "2001:20::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "not an address",
        "2130706433",
    ],
)
def test_addresses_that_are_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(TargetRefusedError):
        public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.fixture
def now() -> int:

    return int(time.time())
