"""Which addresses a store or server of MLflow's can have.

One that MLflow cannot read is refused before anything is written: it may hold a password where nobody looks for one.
"""

import importlib.metadata
import re

from gptbench.base.redaction import remember_whole

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""With a driver behind them, or without: `postgresql+psycopg2`."""
SCHEMES = ("http", "https", *DATABASES, "databricks")
"""What stands before `://`; `file:` needs none."""
PLUGINS = "mlflow.tracking_store"
"""Group of entry points in which packages name schemes of their own."""
EXPECTED = (
    "null, or the address of a store or server: http://HOST:PORT, https://…, sqlite:///FILE.db, postgresql://…, "
    "mysql://…, mssql://…, file:…, or databricks"
)


def unusable_address(uri: str) -> str | None:
    """What is expected in the place of an address; None where it can be one. What is refused is a secret from then on,
    but for the name of a file."""
    if is_file(uri):
        return f"{EXPECTED}; did you mean sqlite:///{uri}?"
    expected = expected_instead(uri)
    if expected is not None and uri.lower() not in SCHEMES:
        remember_whole(uri)
    return expected


def is_file(uri: str) -> bool:
    """Whether it is the name of a file or a folder, as which it holds no password."""
    plain = re.fullmatch(r"[\w./~-]+", uri) is not None
    return plain and (uri.startswith(("/", "./", "../", "~/")) or uri.endswith((".db", ".sqlite", ".sqlite3")))


def expected_instead(uri: str) -> str | None:
    """The same of an address that is no name of a file."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?(.*)", uri, re.DOTALL)
    scheme, slashes, rest = found.groups() if found else ("", None, uri)
    if "@" in uri and not slashes:
        return "a scheme such as http, and two slashes: http://HOST, with user and password before an @"
    kind = scheme.lower().partition("+")[0]
    is_local = kind in ("file", "sqlite") and not re.search("[@?]", uri)
    if re.search(r"\s" if not is_local else r"[\n\r]", uri) or not uri.isprintable():
        return "an address without spaces; in a user's name or a password a space is written %20"
    plugins = {each.name for each in importlib.metadata.entry_points(group=PLUGINS)}
    if kind == "file" or uri == "databricks" or kind in plugins:
        return None
    if kind not in SCHEMES or not slashes:
        return EXPECTED
    if kind in ("http", "https") and (not rest or rest.startswith("/")):
        return f"{scheme}://HOST:PORT"
    return None
