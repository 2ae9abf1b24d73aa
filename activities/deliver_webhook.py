"""The activity that makes one attempt to send one event to one endpoint. Temporal's retry policy repeats it.

Whoever controls a host name controls the address that it resolves to: without a check, a name that points to a private
address would make the worker send requests into its own network. So the address is checked when the socket for it is
created; after that, nothing can change the address any more.
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
from workflows.ids import BatchRef, event_id, webhook_id
from workflows.webhook_types import DeliverWebhookInput, DeliverWebhookResult

log = logging.getLogger("everbatch.webhooks")

ANSWER_SECONDS: Final = 10.0
"""Timeout of an attempt in seconds, including the lookup of the host name."""

DNS_THREADS: Final = 8

_USER_AGENT: Final = f"Everbatch/{version('everbatch')} (webhooks)"

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_UNICAST: Final = ipaddress.ip_network("2000::/3")
_SPECIAL: Final = [ipaddress.ip_network(name) for name in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")]
"""Networks of IANA's special-purpose registries that Python's versions classify differently."""


class TargetRefusedError(Exception):
    """The endpoint's host leads to an address that is not on the public internet."""


def is_public(address: str) -> bool:
    """Return whether an IP address is on the public internet. An IPv6 form of an IPv4 address counts as the latter."""
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
    """Return a socket for an address in the form that ``getaddrinfo`` returns.

    Raises:
        TargetRefusedError: the address is not on the public internet.
    """
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise TargetRefusedError
    return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Works like aiohttp's resolver, but with separate threads: a name server that does not answer must not occupy the
    threads that calls of the store need.
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
        """Do nothing: later resolvers use the same threads."""


class DeliverWebhook(DeliverWebhookStub):
    def __init__(
        self,
        endpoints: Endpoints,
        store: ObjectStore,
        *,
        allow_private: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Args: ``store`` has the webhooks of single batches; ``allow_private`` permits other than public addresses."""
        self._endpoints = endpoints
        self._of_batches = BatchWebhooks(store)
        self._allow_private = allow_private
        self._clock = clock
        self._threads = ThreadPoolExecutor(DNS_THREADS, "webhooks")

    @activity.defn(name=DELIVER_WEBHOOK)
    async def deliver_webhook(self, task: DeliverWebhookInput) -> DeliverWebhookResult:
        endpoint = await self._endpoint(task)
        if endpoint is None:
            # Retryable: this worker may not have the new configuration yet.
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
        except aiohttp.InvalidURL:  # for example, a single number that stands for an IPv4 address
            raise ApplicationError("the endpoint's URL is invalid", type="TargetRefused", non_retryable=True) from None
        except TimeoutError:
            raise _failure(f"no response within {ANSWER_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Only the class: the message may contain the URL, and the URL may contain a secret.
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
            own = await asyncio.to_thread(self._of_batches.get, BatchRef(task.tenant, task.batch_id))
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
        """Send the event. Returns the status of the response, whose body is not read."""
        body = event_body(event_id(task.batch_id), task.event, task.created_at, task.batch_id)
        delivery, timestamp = webhook_id(task.batch_id, task.endpoint), int(self._clock())
        headers = {
            "content-type": "application/json",
            "user-agent": _USER_AGENT,
            "webhook-id": delivery,
            # The time of this attempt: receivers refuse timestamps older than five minutes.
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(endpoint.secrets, delivery, timestamp, body),
        }
        connector = aiohttp.TCPConnector(
            socket_factory=None if self._allow_private else public_socket,
            resolver=_Resolver(self._threads),
            happy_eyeballs_delay=None,  # try addresses one by one, so that a refused address ends the attempt
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
    """Return the error of a failed attempt; the retry policy decides when the next one is made."""
    return ApplicationError(reason, type="WebhookFailed", category=ApplicationErrorCategory.BENIGN)
