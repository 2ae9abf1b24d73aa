"""The options that Temporal workers of batches have in common, among them the version of their code."""

from __future__ import annotations

from datetime import timedelta
from importlib.metadata import version
from typing import Final, NotRequired, TypedDict

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from activities.heartbeats import HEARTBEAT_THROTTLE
from activities.settings import Settings

# The SDK's default, a hash of the code of all loaded modules, takes most of a second at each start.
BUILD_ID: Final = f"everbatch-{version('everbatch')}"


class WorkerOptions(TypedDict):
    disable_eager_activity_execution: bool
    max_heartbeat_throttle_interval: timedelta
    graceful_shutdown_timeout: timedelta
    build_id: NotRequired[str]
    deployment_config: NotRequired[WorkerDeploymentConfig]


def worker_options(settings: Settings) -> WorkerOptions:
    """Return the common options; those for the version depend on whether worker deployments are used."""
    options: WorkerOptions = {
        "disable_eager_activity_execution": True,
        "max_heartbeat_throttle_interval": HEARTBEAT_THROTTLE,
        "graceful_shutdown_timeout": timedelta(seconds=settings.drain_timeout),
    }
    build_id = settings.build_id or BUILD_ID
    if not settings.deployment:
        return {**options, "build_id": build_id}
    return {
        **options,
        "deployment_config": WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(settings.deployment, build_id),
            use_worker_versioning=True,
            # A batch ends on the version on which it began, at most its completion window later.
            default_versioning_behavior=VersioningBehavior.PINNED,
        ),
    }
