"""The cost of a run, against its plan."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.cost import CostEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Device-hours and their price, planned and actual. The plan covers training alone."""

    device_hours: float
    """Allocated, over all attempts."""
    planned_device_hours: float | None
    more_device_hours: float | None
    """By how much the run took more than planned; negative when it took less."""
    cost: float | None
    planned_cost: float | None
    more_cost: float | None
    price_per_device_hour: float | None


def make_bill(device_hours: float, *, price_per_device_hour: float | None, planned: CostEstimate | None) -> Bill:
    """The bill of all allocated time. Pure."""
    cost = None if price_per_device_hour is None else device_hours * price_per_device_hour
    planned_cost = planned.cost if planned is not None else None
    return Bill(
        device_hours=device_hours,
        planned_device_hours=planned.device_hours if planned is not None else None,
        more_device_hours=device_hours - planned.device_hours if planned is not None else None,
        cost=cost,
        planned_cost=planned_cost,
        more_cost=cost - planned_cost if cost is not None and planned_cost is not None else None,
        price_per_device_hour=price_per_device_hour,
    )
