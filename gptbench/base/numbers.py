"""How a person reads a number."""


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def short(value: float) -> str:
    """As it stands in a chart."""
    return number(value, 3)


def micro(seconds: float) -> str:
    """Seconds, in µs or where these are many in ms."""
    return f"{seconds * 1e3:.4g} ms" if seconds >= 1e-2 else f"{seconds * 1e6:.4g} µs"


def gb(count: int) -> str:
    """Bytes, in GB."""
    return f"{count / 1e9:.2f} GB"


def giga(count: float) -> str:
    """Bytes, in GB or where these are few in MB."""
    return f"{count / 1e9:.4g} GB" if count >= 1e8 else f"{count / 1e6:.4g} MB"
