"""The HTTP application, put together."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Depends, FastAPI

from activities.catalog import Catalog
from activities.settings import Settings
from activities.storage import ObjectStore
from api import __version__
from api.auth import AuthMiddleware, caller
from api.batches import batches_router
from api.errors import add_error_handlers
from api.files import files_router
from api.health import health_router
from api.keys import KeyFile
from api.limits import StoredBytes
from api.metrics import ApiMetrics, metrics_router
from api.middleware import RequestMiddleware
from api.models import ModelsProxy, models_router
from api.schemas import Error, error_responses
from api.uploads import uploads_router
from api.views import Gateway


def create_app(
    settings: Settings, gateway: Gateway, store: ObjectStore, models: Sequence[ModelsProxy], keys: KeyFile | None = None
) -> FastAPI:
    """The API over its parts; it opens and closes none of them. Without ``keys`` it asks for none."""
    app = FastAPI(
        title="Everbatch",
        version=__version__,
        # A redirect would lose a body on its way, and OpenAI has none.
        redirect_slashes=False,
        # Their pages load scripts from a public network; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        responses=error_responses(400, 500) | {"4XX": {"model": Error}, "5XX": {"model": Error}},
        generate_unique_id_function=lambda route: route.name,
    )
    add_error_handlers(app)
    metrics = ApiMetrics(gateway)
    app.add_middleware(AuthMiddleware, keys=keys)
    app.add_middleware(RequestMiddleware, metrics=metrics)  # around the other: its refusals are answers like any
    stored = StoredBytes(Catalog(store))
    app.include_router(files_router(settings, store, stored))
    app.include_router(uploads_router(settings, store, stored))
    app.include_router(batches_router(settings, store, gateway))
    app.include_router(models_router(models), dependencies=[Depends(caller)])
    app.include_router(health_router(store, gateway))
    app.include_router(metrics_router(metrics))
    return app
