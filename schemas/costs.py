"""What devices and storage cost: no field changes a result."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from schemas.base import Frozen, runtime

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CostsConfig(Frozen):
    """The devices to plan for, and what they cost."""

    device: str | None = runtime(None, pattern="^[a-z0-9][a-z0-9.-]*$")
    """The kind of device that `plan` estimates for, such as nvidia-h100 or cpu; empty means what
    this machine has.
    """
    devices: int | None = runtime(None, ge=1)
    """How many of them all workers together may use (for cpu: cores); empty means all of this
    machine's.
    """
    prices: dict[str, Price] = runtime({})
    """Price of one device for an hour, by kind: {nvidia-h100: 2.5, cpu: 0.04}."""
    storage_price: Price = runtime(0.0)
    """Price of 1e12 bytes in the store for a month."""
    check_room: bool = runtime(True)
    """Whether to refuse a run that, by the estimates, does not fit the memory of its devices or the
    disks.
    """
    currency: str = runtime("USD", min_length=1, max_length=8)
    """How prices are shown."""
