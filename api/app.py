"""The HTTP application, put together."""

from __future__ import annotations

from fastapi import FastAPI

from activities.settings import Settings
from activities.storage import ObjectStore
from api import __version__
from api.batches import batches_router
from api.errors import add_error_handlers
from api.files import files_router
from api.health import health_router
from api.middleware import RequestMiddleware
from api.models import ModelsProxy, models_router
from api.schemas import Error
from api.views import Gateway


def create_app(settings: Settings, gateway: Gateway, store: ObjectStore, models: ModelsProxy) -> FastAPI:
    """The API over its parts; it opens and closes none of them."""
    app = FastAPI(
        title="Everbatch",
        version=__version__,
        # A redirect would lose a body on its way, and OpenAI has none.
        redirect_slashes=False,
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
    )
    add_error_handlers(app)
    app.add_middleware(RequestMiddleware)
    app.include_router(files_router(settings, store))
    app.include_router(batches_router(settings, store, gateway))
    app.include_router(models_router(models))
    app.include_router(health_router(store, gateway))
    return app
