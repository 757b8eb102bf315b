"""Numbers, times and sizes as people read them."""

from datetime import datetime
from decimal import Decimal

NONE = "–"
"""Stands where a number is not known."""


def number(value: float | None) -> str:
    """A number with thousands separated, or with the four digits that count: 12,345 and 0.01235."""
    if value is None:
        return NONE
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share between 0 and 1 as per cent: 92.5%."""
    return NONE if share is None else f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """A time span in whole seconds: `8 s`, `1 min 12 s`, `3 h 5 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def short_duration(seconds: float) -> str:
    """The same, with tenths where there are only a few seconds: `0.4 s`."""
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def size(count: int) -> str:
    """Bytes in the decimal units that disks and hubs count in: `3.09 GB`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB"


def amount(quantity: str) -> Decimal:
    """A Kubernetes quantity as a number: 500m is 0.5, 64Gi is 2**36."""
    number = quantity.rstrip("mkMGTPEi")
    unit = quantity.removeprefix(number)
    if unit == "m":
        return Decimal(number) / 1000
    base = Decimal(1024 if unit.endswith("i") else 1000)
    return Decimal(number) * base ** " KMGTPE".index(unit[:1].upper() or " ")


def moment(time: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
