"""Checks the address of an MLflow store or tracking server.

An address that MLflow cannot use is rejected before anything is written, as it may hold a password in an unexpected
place."""

import importlib.metadata
import re

from gptbench.base.redaction import remember_whole

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Schemes of databases, which a driver may follow, as in `postgresql+psycopg2`."""
SCHEMES = ("http", "https", *DATABASES, "databricks")
"""Schemes that are followed by `://`; `file:` need not be."""
PLUGINS = "mlflow.tracking_store"
"""Group of entry points in which packages register further schemes."""
EXPECTED = (
    "null, or the address of a store or server: http://HOST:PORT, https://…, sqlite:///FILE.db, postgresql://…, "
    "mysql://…, mssql://…, file:…, or databricks"
)


def unusable_address(uri: str) -> str | None:
    """Return what is expected instead of an address, or None if the address is usable.

    A rejected address counts as a secret from then on, unless it is the name of a file.
    """
    if is_file(uri):
        return f"{EXPECTED}; did you mean sqlite:///{uri}?"
    expected = expected_instead(uri)
    if expected is not None and uri.lower() not in SCHEMES:
        remember_whole(uri)
    return expected


def is_file(uri: str) -> bool:
    """Whether an address is plainly the name of a file or folder, and therefore holds no password."""
    plain = re.fullmatch(r"[\w./~-]+", uri) is not None
    return plain and (uri.startswith(("/", "./", "../", "~/")) or uri.endswith((".db", ".sqlite", ".sqlite3")))


def expected_instead(uri: str) -> str | None:
    """Does what `unusable_address` does, for an address that is not the name of a file."""
    parts = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?(.*)", uri, re.DOTALL)
    scheme, slashes, rest = parts.groups() if parts else ("", None, uri)
    if "@" in uri and not slashes:
        return "a scheme such as http, and two slashes: http://HOST, with user and password before an @"
    kind = scheme.lower().partition("+")[0]
    is_local = kind in ("file", "sqlite") and not re.search("[@?]", uri)
    if re.search(r"\s" if not is_local else r"[\n\r]", uri) or not uri.isprintable():
        return "an address without spaces; write a space in a user name or password as %20"
    plugins = {entry.name for entry in importlib.metadata.entry_points(group=PLUGINS)}
    if kind == "file" or uri == "databricks" or kind in plugins:
        return None
    if kind not in SCHEMES or not slashes:
        return EXPECTED
    if kind in ("http", "https") and (not rest or rest.startswith("/")):
        return f"{scheme}://HOST:PORT"
    return None
