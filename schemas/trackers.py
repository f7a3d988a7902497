"""Where the curves of trainings are shown. No field changes a result. Keys and passwords come from
the environment, never from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from schemas.base import Frozen, runtime


class TensorBoardTracker(Frozen):
    """TensorBoard's event files, in the artifact's folder `tensorboard`."""

    kind: Literal["tensorboard"]
    """Selects this tracker."""


class WandbTracker(Frozen):
    """Weights & Biases. The key is WANDB_API_KEY or the user's `.netrc`."""

    kind: Literal["wandb"]
    """Selects this tracker."""
    project: str = runtime("ladd-pipeline", min_length=1)
    """The project; it is made if it does not exist."""
    entity: str | None = runtime(None)
    """User or team; empty means the user's default."""
    mode: Literal["online", "offline"] = runtime("online")
    """offline writes into WANDB_DIR (or the folder of the command), for `wandb sync` to upload."""


class MlflowTracker(Frozen):
    """MLflow. Its credentials are MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN."""

    kind: Literal["mlflow"]
    """Selects this tracker."""
    uri: str | None = runtime(None)
    """A server, a database or a folder; empty means MLFLOW_TRACKING_URI, or else MLflow's own."""
    experiment: str = runtime("ladd-pipeline", min_length=1)
    """The experiment; it is made if it does not exist."""

    @field_validator("uri")
    @classmethod
    def _holds_no_password(cls, uri: str | None) -> str | None:
        if uri is not None and urlsplit(uri).password is not None:
            raise ValueError(
                "uri holds a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
                "in the environment instead, or the whole address as MLFLOW_TRACKING_URI"
            )
        return uri


def _named(value: Any) -> Any:
    """A tracker without settings may be given by its name."""
    return {"kind": value} if isinstance(value, str) else value


TrackerConfig = Annotated[
    Annotated[TensorBoardTracker | WandbTracker | MlflowTracker, Field(discriminator="kind")],
    BeforeValidator(_named),
]
