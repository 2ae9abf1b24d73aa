"""The activity that sends one event to one endpoint, once. Temporal's retry policy brings it back.

The addresses of endpoints are the operator's, but what a name resolves to is not: without care a host name that
points inwards would have the worker send requests to its own network. So the address is looked at when the socket for
it is made; behind that, nothing can change it any more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from yarl import URL

from activities.records.batch_webhooks import BATCH_WEBHOOK, BatchWebhooks
from activities.store.object_store import ObjectNotFoundError, ObjectStore, StoreError
from activities.webhooks import Endpoint, Endpoints, event_body, signature
from workflows.contract import DELIVER_WEBHOOK, DeliverWebhookStub
from workflows.ids import event_id, webhook_id
from workflows.webhook_types import DeliverWebhookInput, DeliverWebhookResult

log = logging.getLogger("everbatch.webhooks")

ANSWER_SECONDS: Final = 10.0
"""For an answer, from looking up the host on."""

DNS_THREADS: Final = 8

_USER_AGENT: Final = f"Everbatch/{version('everbatch')} (webhooks)"

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
_SPECIAL: Final = [ipaddress.ip_network(name) for name in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")]
"""Of IANA's special-purpose registries; what Python says of these differs between its versions."""


class TargetRefusedError(Exception):
    """The endpoint's host leads to an address that is not on the public internet."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also inside IPv6 forms that stand for an IPv4 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[12:])
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:
            return False
    special = any(ip in network for network in _SPECIAL)
    return ip.is_global and not (special or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def public_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an address as ``getaddrinfo`` gives it.

    Raises:
        TargetRefusedError: it is not of the public internet.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise TargetRefusedError
    return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """As aiohttp's own, but with threads of its own: a name server that does not answer is not to hold those that
    wait for the store.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        ask = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        answers = await asyncio.get_running_loop().run_in_executor(self._threads, ask)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=0)
            for kind, _, protocol, _, address in answers
        ]

    async def close(self) -> None:
        """The threads stay for the next."""


class DeliverWebhook(DeliverWebhookStub):
    def __init__(
        self,
        endpoints: Endpoints,
        store: ObjectStore,
        *,
        allow_private: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: ``store`` has the webhooks of single batches."""
        self._endpoints = endpoints
        self._of_batches = BatchWebhooks(store)
        self._allow_private = allow_private
        self._clock = clock
        self._threads = ThreadPoolExecutor(DNS_THREADS, "webhooks")

    @activity.defn(name=DELIVER_WEBHOOK)
    async def deliver_webhook(self, task: DeliverWebhookInput) -> DeliverWebhookResult:
        endpoint = await self._endpoint(task)
        if endpoint is None:
            # Tried again: it may be that this worker has not been told of it yet.
            raise ApplicationError(
                f"no webhook named {task.endpoint} is configured for the tenant on this worker", type="UnknownWebhook"
            )
        if not endpoint.wants(task.event):
            return DeliverWebhookResult(delivered=False)
        try:
            status = await self._send(endpoint, task)
        except TargetRefusedError:
            raise ApplicationError(
                "the endpoint's address is private, loopback or otherwise not public (EVERBATCH_WEBHOOK_ALLOW_PRIVATE)",
                type="TargetRefused",
                non_retryable=True,
            ) from None
        except aiohttp.InvalidURL:  # a number that stands for an IPv4 address, for example
            raise ApplicationError("the endpoint's URL is invalid", type="TargetRefused", non_retryable=True) from None
        except TimeoutError:
            raise _failure(f"no response within {ANSWER_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The class alone: the message may hold the address, and that a secret.
            raise _failure(type(error).__name__) from None
        if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            redirect = ", and redirects are not followed" if 300 <= status < 400 else ""
            raise _failure(f"HTTP {status}{redirect}")
        log.info("webhook %s: %s of %s delivered", task.endpoint, task.event, task.batch_id)
        return DeliverWebhookResult(delivered=True, status=status)

    async def _endpoint(self, task: DeliverWebhookInput) -> Endpoint | None:
        if task.endpoint != BATCH_WEBHOOK:
            return self._endpoints.find(task.endpoint, task.tenant)
        try:
            own = await asyncio.to_thread(self._of_batches.get, task.tenant, task.batch_id)
        except ObjectNotFoundError:
            text = "the batch's own webhook is no longer stored"
            raise ApplicationError(text, type="UnknownWebhook", non_retryable=True) from None
        except StoreError as error:
            raise ApplicationError(str(error), type="StoreError") from None
        return Endpoint(
            name=task.endpoint,
            url=SecretStr(own.url),
            secrets=(SecretStr(own.secret),),
            events=frozenset(own.events) if own.events else None,
        )

    async def _send(self, endpoint: Endpoint, task: DeliverWebhookInput) -> int:
        """The status of the answer, whose body is not read."""
        body = event_body(event_id(task.batch_id), task.event, task.created_at, task.batch_id)
        delivery, timestamp = webhook_id(task.batch_id, task.endpoint), int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": _USER_AGENT,
            "webhook-id": delivery,
            # Of this attempt: receivers refuse what is older than five minutes.
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(endpoint.secrets, delivery, timestamp, body),
        }
        connector = aiohttp.TCPConnector(
            socket_factory=None if self._allow_private else public_socket,
            resolver=_Resolver(self._threads),
            happy_eyeballs_delay=None,  # one address after the other, so that a refused one ends the attempt
            use_dns_cache=False,
            force_close=True,
        )
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.post(
                URL(endpoint.url.get_secret_value()), data=body, headers=headers, allow_redirects=False
            ) as response,
        ):
            return response.status


def _failure(reason: str) -> ApplicationError:
    """An attempt that failed; the retry policy says when the next is."""
    return ApplicationError(reason, type="WebhookFailed", category=ApplicationErrorCategory.BENIGN)
