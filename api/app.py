"""Builds the HTTP application from its parts."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Depends, FastAPI

from activities.records.catalog import Catalog
from activities.result_pages import ResultPages
from activities.settings import Settings
from activities.store.object_store import ObjectStore
from api import __version__
from api.gateway.interface import Gateway
from api.http.auth import AuthMiddleware, caller
from api.http.azure_paths import AzurePaths
from api.http.browser_guard import BrowserGuard
from api.http.errors import add_error_handlers
from api.http.metrics import ApiMetrics, metrics_router
from api.http.middleware import RequestMiddleware
from api.http.schemas import Error, error_responses
from api.http.tenant_turns import TenantTurns
from api.routes.batches import batches_router
from api.routes.creates import Creates
from api.routes.events import events_router
from api.routes.files import files_router
from api.routes.health import health_router
from api.routes.message_batches import message_batches_router
from api.routes.models import ModelsProxy, models_router
from api.routes.page import page_router
from api.routes.partial_files import PartialFiles
from api.routes.results import results_router
from api.routes.stored_bytes import StoredBytes
from api.routes.uploads import uploads_router
from api.tenants.keys import KeyFile


def create_app(
    settings: Settings, gateway: Gateway, store: ObjectStore, models: Sequence[ModelsProxy], keys: KeyFile | None = None
) -> FastAPI:
    """Return the API. It neither opens nor closes the given parts. Without ``keys`` it requires no API key."""
    app = FastAPI(
        title="Everbatch",
        version=__version__,
        # Clients may lose the body when they follow a redirect, and OpenAI's API has none.
        redirect_slashes=False,
        # FastAPI's pages load scripts from the Internet. The OpenAPI document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        # One response names the model, so that the document contains its schema.
        responses=error_responses(400, "4XX", "5XX") | {500: {"model": Error}},
        generate_unique_id_function=lambda route: route.name,
    )
    add_error_handlers(app)
    metrics = ApiMetrics(gateway)
    if keys is not None:
        app.add_middleware(TenantTurns)
    app.add_middleware(AuthMiddleware, keys=keys)
    if keys is None:
        app.add_middleware(BrowserGuard, hosts=settings.hosts)
    app.add_middleware(RequestMiddleware, metrics=metrics)  # outside of those above, to count their refusals too
    app.add_middleware(AzurePaths)
    stored = StoredBytes(Catalog(store))
    pages = ResultPages(store)
    partial = PartialFiles(settings, Catalog(store), pages)
    app.include_router(files_router(settings, store, stored, partial))
    app.include_router(uploads_router(settings, store, stored))
    creates = Creates(settings, store, gateway)
    app.include_router(batches_router(settings, store, gateway, creates, partial))
    app.include_router(events_router(gateway))
    app.include_router(results_router(Catalog(store), pages))
    app.include_router(message_batches_router(settings, store, gateway, stored, creates))
    app.include_router(models_router(models), dependencies=[Depends(caller)])
    app.include_router(health_router(store, gateway))
    app.include_router(page_router(settings.temporal_ui_url))
    app.state.metrics = metrics
    if not settings.api_metrics_address:
        app.include_router(metrics_router(metrics))
    return app


def create_metrics_app(app: FastAPI) -> FastAPI:
    """Return an application that serves only the metrics of the API, for an address of its own."""
    own = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    own.include_router(metrics_router(app.state.metrics))
    return own
