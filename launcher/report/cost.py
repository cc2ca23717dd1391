"""What a run cost, beside what was expected of it."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.runs.untyped_json import Loose


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Device-hours and their price, estimated and real. The estimate is of training alone."""

    device_hours: float
    """Allocated, over all attempts."""
    cost: float | None
    planned_device_hours: float | None
    planned_cost: float | None
    planned_tokens_per_s: float | None
    planned_memory_gib: float | None
    """Of one device."""
    price_per_device_hour: float | None

    @property
    def more_device_hours(self) -> float | None:
        """By how much the run took more than planned; negative when it took less."""
        return None if self.planned_device_hours is None else self.device_hours - self.planned_device_hours

    @property
    def more_cost(self) -> float | None:
        if self.cost is None or self.planned_cost is None:
            return None
        return self.cost - self.planned_cost

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "device_hours": self.device_hours,
            "planned_device_hours": self.planned_device_hours,
            "more_device_hours": self.more_device_hours,
            "cost": self.cost,
            "planned_cost": self.planned_cost,
            "more_cost": self.more_cost,
            "price_per_device_hour": self.price_per_device_hour,
        }


def bill(device_hours: float, *, price_per_device_hour: float | None, plan: Loose) -> Bill:
    """The bill of what was allocated. Pure.

    Args:
        plan: plan.json of the run.
    """
    price = price_per_device_hour
    return Bill(
        device_hours=device_hours,
        cost=None if price is None else device_hours * price,
        planned_device_hours=plan.at("bill", "device_hours").number,
        planned_cost=plan.at("bill", "cost").number,
        planned_tokens_per_s=plan.at("bill", "tokens_per_s").number,
        planned_memory_gib=plan.at("memory", "device_total").number,
        price_per_device_hour=price,
    )
