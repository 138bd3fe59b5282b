"""Formats numbers for people."""


def number(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, and with all digits before the decimal point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def short(value: float) -> str:
    """Return a number as charts show it, with three significant digits."""
    return number(value, 3)


def micro(seconds: float) -> str:
    """Return a duration, given in seconds, in µs, or from 10 ms on in ms."""
    return f"{seconds * 1e3:.4g} ms" if seconds >= 1e-2 else f"{seconds * 1e6:.4g} µs"


def gb(count: int) -> str:
    """Return a number of bytes in GB."""
    return f"{count / 1e9:.2f} GB"


def giga(count: float) -> str:
    """Return a number of bytes in GB, or below 0.1 GB in MB."""
    return f"{count / 1e9:.4g} GB" if count >= 1e8 else f"{count / 1e6:.4g} MB"
