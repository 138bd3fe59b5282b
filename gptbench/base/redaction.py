"""Hides secrets in everything that is written: files, names of folders, MLflow, logs and printed text.

These are secrets: the part of a URI before the `@`, percent-encoded or not; the value of a query's key with a secret's
name (`?token=`), and of such a field (`password=`, `password: `), option (`--password`) or header (`Authorization:
Bearer`), even in JSON within JSON; a key of a well-known form (`hf_…`); and the secrets of a URI that was passed to
`remember`, parts of which libraries repeat in errors. Each is replaced by `***`: to repeat a command, fill it in again.

A URI is split as a careless user would write it, not by RFC 3986: a password may hold slashes, quotes and `@`. In case
of doubt, more is hidden than necessary.
"""

import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

HIDDEN = "***"

IN_VALUE = r"\S"
"""Pattern of a URI's characters in a text that is a single value, such as an override."""
IN_FILE = r'(?:[^\s"<>\\]|\\+[:=,@/()])'
"""Pattern of a URI's characters in JSON, HTML and other files, where a URI ends at the latest with its string."""
SCHEME = r"\b([A-Za-z][A-Za-z0-9+.-]*)(\\*:)//"
"""Scheme of a URI; Hydra puts a backslash before the colon."""

NAMES = ("password", "passwd", "passphrase", "secret", "credential", "signature", "authorization")
"""Words that mark a name as a secret's wherever they are part of it, in any spelling."""
SHORT_NAMES = ("token", "pwd", "pass", "sig", "auth")
"""Words that mark a name as a secret's if they are its last word: `access_token`, but not `stop_tokens`."""
JOINED_NAMES = ("apikey", "accesskey", "secretkey", "privatekey", "accountkey", "accesstoken", "authtoken")
"""Endings that mark a name as a secret's, without what joins its words: `access_key`, but not `sort_key`."""
QUERY_NAMES = ("key", "sas", "code")
"""Names that are a secret's only in a query."""
TOKEN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|dapi[0-9a-f]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
)
"""Tokens of Hugging Face, Databricks, GitHub, GitLab, Amazon, Slack and OpenAI, and JSON web tokens."""
QUOTED = r"""'[^']*'|"(?:[^"\\]|\\.)*\""""
FIELD = re.compile(rf"""(?<![\w.-])([\w.-]{{1,100}})(\\*=)({QUOTED}|[^\s&;,"'<>\\]+)""")
ENTRY = re.compile(rf"""(?<=['"])([\w.-]{{1,100}})(['"]\s*:\s*)({QUOTED})""")
"""Entry of a dict or JSON object as text."""
NESTED = re.compile(
    r"""(?<!\\)(\\{1,63})(["'])([\w.-]{1,100})\1\2(\s*:\s*)\1\2((?:(?!\2)[^\\]|\\+(?!["'\\]).|\1\\+["'])*)\1\2""",
    re.DOTALL,
)
"""Entry of a JSON object in a string of another one: each of its quotes has the same number of backslashes before
it."""
BEARER = r"(?:Bearer|Basic|Digest|Token)\s+"
WORD = r"""[^\s&;,"'<>\\]+"""
SECRET_WORD = re.compile(rf"(?:{BEARER})?{WORD}|{QUOTED}")
LINE = re.compile(r"(?<![\w.-])([\w.-]{1,100}):[ \t]+")
"""Name and colon, as in a header or in YAML."""
OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w-]{1,100})\s+")
TOKEN_AFTER = re.compile(r"\b([Bb]earer\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{8,}=*")
ENCODED = re.compile(
    r"""(?:(?<![A-Za-z0-9+.-])|(?<=%[0-9A-Fa-f]{2}))[A-Za-z][A-Za-z0-9+.-]*%(?:25)*3[Aa]%(?:25)*2[Ff][^\s"'<>&\\]+"""
)
"""Percent-encoded URI, as within another URI."""
ONE_SLASH = re.compile(r"""\b(https?\\*:/?)(?!/)([^\s"'<>]+)@""", re.IGNORECASE)
NO_SCHEME = re.compile(r"""(?<![\w/:@.+*-])[\w.+-]{1,100}:[^\s/:@"'<>\\,]{6,}@(?=[\w\[])""")
"""URI without a scheme: MLflow rejects it, but it is still written to records."""
OVERRIDE = re.compile(r"(?s)([+~]*([\w.@/-]{1,200})=)(.+)")

MIN_CHARACTERS = 6
"""Smallest length of a secret that is hidden wherever it appears; shorter ones are common words, too."""

remembered: set[str] = set()
"""Secrets of this process, and their parts, that `redacted_message` hides."""


def redacted(value: Any) -> Any:
    """Return a value without secrets; in plain data, every string and every key is redacted."""
    if isinstance(value, str):
        if (override := OVERRIDE.fullmatch(value)) is not None and is_secret(override[2]):
            return f"{override[1]}{HIDDEN}"
        return without_secrets(value, IN_VALUE)
    if isinstance(value, dict):
        return {
            redacted(key): HIDDEN if isinstance(entry, str) and entry and is_secret(str(key)) else redacted(entry)
            for key, entry in value.items()
        }
    if type(value) in (list, tuple):
        entries = [None, *value]
        return type(value)(
            HIDDEN if isinstance(entry, str) and is_secret_option(before) else redacted(entry)
            for before, entry in zip(entries, value, strict=False)
        )
    return value


def redacted_text(text: str) -> str:
    """Return the text of a file without secrets; JSON and HTML stay valid."""
    return without_secrets(text, IN_FILE)


def redacted_message(text: str) -> str:
    """Return a message for people, such as a traceback, without secrets and without the remembered parts of URIs."""
    for secret in sorted(remembered, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return redacted_text(text)


def without_secrets(text: str, character: str) -> str:
    """Return the text without secrets.

    Args:
        character: pattern of one character of a URI.
    """
    if "://" in text:
        text = re.sub(f"{SCHEME}({character}*)", hidden_uri, text)
    if "%" in text:
        text = ENCODED.sub(hidden_encoded, text)
    if "@" in text:
        text = NO_SCHEME.sub(f"{HIDDEN}@", ONE_SLASH.sub(rf"\1{HIDDEN}@", text))
    if "=" in text:
        text = FIELD.sub(hidden_entry, text)
    if "':" in text or '":' in text or "' :" in text:
        text = ENTRY.sub(hidden_entry, text)
    if "\\" in text:
        text = NESTED.sub(hidden_nested, text)
    if ": " in text or ":\t" in text:
        text = without_named(text, LINE)
    if "--" in text:
        text = without_named(text, OPTION)
    if "earer" in text:
        text = TOKEN_AFTER.sub(rf"\1{HIDDEN}", text)
    return TOKEN_FORMS.sub(HIDDEN, text)


def hidden_uri(found: re.Match[str]) -> str:
    """Return the replacement for a URI, and for those that follow it without a space."""
    scheme, colon_after, rest = found.groups()
    user, at, rest = rest.rpartition("@")
    host_and_port = re.match(r"[^/?#'),]*", rest)
    assert host_and_port is not None
    place, rest = host_and_port[0], rest[host_and_port.end() :]
    if scheme.lower().startswith("databricks") and place and not at:  # a profile, or scope and key: may be a token
        place = HIDDEN
    host, colon, port = place.partition(":")
    if colon and host and not at and not re.match(r"\[|.*\$\{", place) and not re.match(r"\d*\W*$|\*", port):
        place = f"{host}:{HIDDEN}"  # a user and a password without a host
    rest = re.sub(r"([?&;#])([^=&;#?]+)=([^&]*)", hidden_query, rest)
    rest = re.sub(f"{SCHEME}({IN_VALUE}*)", hidden_uri, rest)
    return f"{scheme}{colon_after}//{HIDDEN if user else ''}{at}{place}{rest}"


def hidden_query(found: re.Match[str]) -> str:
    key = unquote_plus(found[2])
    hidden = (is_secret(key) or key.lower() in QUERY_NAMES) and not found[3].startswith(HIDDEN)
    return f"{found[1]}{found[2]}={HIDDEN}" if hidden else found[0]


def hidden_entry(found: re.Match[str]) -> str:
    key, between, value = found.groups()
    if not is_secret(key):
        return f"{key}{between}{ENTRY.sub(hidden_entry, FIELD.sub(hidden_entry, value))}"
    quote = value[0] if value[0] in "'\"" else ""
    return f"{key}{between}{quote}{HIDDEN}{quote}"


def hidden_encoded(found: re.Match[str]) -> str:
    """Return the replacement for a percent-encoded URI, which is decoded first."""
    plain = found[0]
    while "%" in plain and (decoded := unquote(plain)) != plain:
        plain = decoded
    without = without_secrets(plain, r"(?s:.)")
    return found[0] if without == plain else quote(without, safe="*")


def hidden_nested(found: re.Match[str]) -> str:
    slashes, mark, key, between, value = found.groups()
    quotes = slashes + mark
    value = HIDDEN if is_secret(key) else NESTED.sub(hidden_nested, value)
    return f"{quotes}{key}{quotes}{between}{quotes}{value}{quotes}"


def without_named(text: str, name: re.Pattern[str]) -> str:
    """Return the text without secrets that follow a secret's name.

    After an ambiguous name, only what looks like a token is hidden: `unexpected token: end of file` stays.

    Args:
        name: pattern of a name; its first group is the name.
    """
    parts, end = [], 0
    for found in name.finditer(text):
        value = SECRET_WORD.match(text, found.end())
        if found.start() < end or value is None or value[0] in EMPTY or not is_secret(found[1]):
            continue
        like_token = len(value[0]) >= MIN_CHARACTERS and re.search(r"\d", value[0]) and re.search("[A-Za-z]", value[0])
        if is_unambiguous(found[1]) or like_token:
            mark = value[0][0] if value[0][0] in "'\"" else ""
            parts += [text[end : value.start()], mark, HIDDEN, mark]
            end = value.end()
    return "".join([*parts, text[end:]])


EMPTY = ("null", "None", "true", "false")
"""Values that are no secrets, but only say whether there is one."""


def is_secret_option(argument: object) -> bool:
    """Whether an argument is an option whose value, the next argument, is a secret."""
    return isinstance(argument, str) and re.fullmatch(r"--[A-Za-z][\w-]+", argument) is not None and is_secret(argument)


def is_secret(name: str) -> bool:
    """Whether a name is that of a secret."""
    if is_unambiguous(name):
        return True
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name) if word]
    return words[-1:] in ([word] for word in SHORT_NAMES) and words[-2:-1] != ["per"]  # joules_per_token


def is_unambiguous(name: str) -> bool:
    """Whether a name can only be that of a secret."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().rpartition(".")[2])
    return any(part in plain for part in NAMES) or plain.endswith(JOINED_NAMES)


def remember(uri: str | None) -> None:
    """Remembers the secrets of a URI that will be used, so that messages of this process hide them."""
    if uri is None:
        return
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return
    before, at, _ = rest.rpartition("@")
    user, colon, password = before.partition(":")
    secrets = [password if colon else user] if at and password != user else []
    secrets += [value for key, value in re.findall(r"[?&;#]([^=&;#?]+)=([^&]*)", rest) if is_secret(unquote_plus(key))]
    if scheme.lower().startswith("databricks") and not at:
        secrets += [rest]
    for secret in secrets:
        remember_whole(secret)


def remember_whole(secret: str) -> None:
    """Remembers a text that is a secret as it stands, and its parts."""
    parts = [secret, unquote_plus(secret), *re.split(r"[/?#@:\s'\"]", secret)]
    remembered.update(part for part in parts if len(part) >= MIN_CHARACTERS)
