"""The version of the worker's code, as Temporal's workers are told it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final, TypedDict

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from activities.settings import Settings

# The SDK's default, a hash of the code of all loaded modules, takes most of a second at each start.
BUILD_ID: Final = f"everbatch-{version('everbatch')}"


class Identity(TypedDict, total=False):
    build_id: str
    deployment_config: WorkerDeploymentConfig


def identity_of(settings: Settings) -> Identity:
    """Return the version of this worker's code as options of a Temporal worker."""
    build_id = settings.build_id or BUILD_ID
    if not settings.deployment:
        return {"build_id": build_id}
    return {
        "deployment_config": WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(settings.deployment, build_id),
            use_worker_versioning=True,
            # A batch ends on the version on which it began, at most its completion window later.
            default_versioning_behavior=VersioningBehavior.PINNED,
        )
    }
