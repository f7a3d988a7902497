"""What a plan would take, as a table: hours, bytes and money, and where the figures come from."""

from __future__ import annotations

from typing import Any

from pipeline.base.sizes import size_text
from pipeline.devices import price_of
from pipeline.estimates import MODEL, PROBE, Estimate, Outlook
from schemas.costs import CostsConfig


def print_costs(ahead: Outlook, costs: CostsConfig) -> None:
    """Print a row for each stage that would run, their sum, and what the figures rest on."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    has_price = price_of(costs, ahead.fleet.device.kind) is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("stage", no_wrap=True)
    names = ["samples", "device-h", "time", "in store", "disk", "memory"]
    for name in [*names, *([costs.currency] if has_price else ())]:
        table.add_column(name, justify="right", no_wrap=True)
    for stage, found in ahead.stages.items():
        unknown = ["?"] * (len(table.columns) - 1)
        table.add_row(stage, *(unknown if found is None else _cells(found, has_price)))
    print()
    Console(highlight=False).print(table)
    print("\n".join(["", *_sum(ahead, costs)]))


def cost_rows(ahead: Outlook) -> dict[str, dict[str, Any] | None]:
    """Return the estimates by stage, as JSON has them."""
    return {name: _row(found) for name, found in ahead.stages.items()}


def _row(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "samples": found.samples,
        "unit": found.unit,
        "flops": found.flops,
        "device_hours": round(found.device_hours, 6),
        "seconds": round(found.seconds, 3),
        "devices": found.devices,
        "store_bytes": round(found.store_bytes),
        "worker_disk_bytes": round(found.scratch_bytes),
        "worker_device_bytes": found.device_bytes,
        "price": None if found.price is None else round(found.price, 4),
        "source": found.source,
    }


def _cells(found: Estimate, has_price: bool) -> list[str]:
    return [
        f"{found.samples:,}",
        _hours(found.device_hours) if found.devices else "",
        duration(found.seconds),
        size_text(found.store_bytes),
        size_text(found.scratch_bytes),
        "" if found.device_bytes is None else size_text(found.device_bytes),
        *([f"{found.price or 0:,.2f}"] if has_price else ()),
    ]


def _sum(ahead: Outlook, costs: CostsConfig) -> list[str]:
    """Return the lines below the table."""
    known, fleet = ahead.known, ahead.fleet
    stored = sum(found.store_bytes for found in known)
    most = "at least " if ahead.unknown else ""
    hours = sum(found.device_hours for found in known)
    text = f"in all: {most}{duration(ahead.seconds)} on {fleet.text}, {_hours(hours)} device-hours"
    if ahead.price is not None:
        text += f" ({money(ahead.price, costs)})"
    text += f", {size_text(stored)} in the store"
    if costs.storage_price:
        text += f" ({money(stored / 1e12 * costs.storage_price, costs)} a month)"
    lines = [text]
    each = price_of(costs, fleet.device.kind)
    if each is not None and ahead.price is not None and fleet.count > 1:
        whole = each * fleet.count * ahead.seconds / 3600
        if whole > 1.05 * ahead.price:
            lines.append(f"if all {fleet.count} are paid from start to end: {money(whole, costs)}")
    if ahead.unknown:
        lines.append(f"not counted: {_why_unknown(ahead, costs)}")
    return lines + _sources(ahead)


def _sources(ahead: Outlook) -> list[str]:
    """Say where the rates come from."""
    by: dict[str, list[str]] = {}
    for stage, found in ahead.stages.items():
        if found is not None:
            by.setdefault(found.source, []).append(stage)
    lines = []
    if named := [f"{stages[0]} by {source}" for source, stages in by.items() if "/" in source]:
        lines.append(f"rates as measured on such devices: {', '.join(named)}")
    if PROBE in by:
        lines.append(f"rates as measured by a probe: {', '.join(by[PROBE])}")
    if MODEL in by:
        shares, peak = ahead.fleet.device.shares, ahead.fleet.device.flops / 1e12
        who = "" if len(by) == 1 else f" of {', '.join(by[MODEL])}"
        lines.append(
            f"rates{who} by the FLOP model: a device reaches {shares['sampling']:.0%} of "
            f"{_scaled(peak)} TFLOP/s in sampling, {shares['training']:.0%} in training, "
            f"{shares['compiled']:.0%} with compiled blocks (docs/scale.md)"
        )
    return lines


def _why_unknown(ahead: Outlook, costs: CostsConfig) -> str:
    names = ", ".join(ahead.unknown)
    if not ahead.fleet.known:
        kind = ahead.fleet.device.kind
        return (
            f"{names}; the speed of the devices ({kind}) is unknown: plan --probe measures it; or "
            "name their kind in costs.device, and their number in costs.devices"
        )
    return (
        f"{names}; that needs prompts.count, and a teacher that is on this machine or a published "
        "Stable Diffusion 3; how much external data and files of pairs hold is known when they are "
        "read"
    )


def duration(seconds: float) -> str:
    """Return `50 s`, `12 min`, `3.3 h` or `4.1 d`."""
    for limit, length, unit in ((90, 1, "s"), (90 * 60, 60, "min")):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def money(price: float, costs: CostsConfig) -> str:
    """Return a price with its currency."""
    return f"{price:,.2f} {costs.currency}"


def _hours(hours: float) -> str:
    return f"{hours:.3f}" if hours < 0.1 else f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"


def _scaled(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
