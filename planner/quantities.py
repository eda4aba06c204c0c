"""Sizes and durations as people write them, in bytes and seconds: 200 MB, 1.5 GiB, 20 ms."""

import re
from collections.abc import Mapping
from decimal import Decimal

from planner.errors import InputError

BYTES: Mapping[str, Decimal] = {
    "B": Decimal(1),
    "kB": Decimal(10**3),
    "KB": Decimal(10**3),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "TB": Decimal(10**12),
    "KiB": Decimal(2**10),
    "MiB": Decimal(2**20),
    "GiB": Decimal(2**30),
    "TiB": Decimal(2**40),
}
SECONDS: Mapping[str, Decimal] = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]+)")


def byte_count(text: str) -> int:
    """Whole bytes of a size.

    >>> byte_count("200 MB"), byte_count("1.5 GiB"), byte_count("64kB")
    (200000000, 1610612736, 64000)
    """
    return int(_amount(text, BYTES, "200 MB or 1.5 GiB"))


def second_count(text: str) -> float:
    """Seconds of a duration.

    >>> second_count("20 ms"), second_count("1.5 s")
    (0.02, 1.5)
    >>> second_count("20 MB")
    Traceback (most recent call last):
    planner.errors.InputError: expected an amount such as 20 ms or 1.5 s, found '20 MB'; units: ns, us, ms, s, min
    """
    return float(_amount(text, SECONDS, "20 ms or 1.5 s"))


def _amount(text: str, units: Mapping[str, Decimal], example: str) -> Decimal:
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2] not in units:
        raise InputError(f"expected an amount such as {example}, found {text!r}; units: {', '.join(units)}")
    return Decimal(found[1]) * units[found[2]]
