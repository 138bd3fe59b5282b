"""Takes secrets out of whatever is written: files and the names of folders, MLflow, logs, what is printed.

A secret is: what stands before the `@` of a URI, percent-encoded or not; in a query the value of a key that is called
like one (`?token=`), and elsewhere that of a field (`password=`, `password: `), an option (`--password`) or a header
(`Authorization: Bearer`), in JSON within JSON, too; a key of a well-known form (`hf_…`); and what a URI held that
`remember` was shown, which errors of libraries repeat in parts. `***` takes its place: to repeat a command, fill it in
again.

A URI is split where a careless user would, not as RFC 3986 does: a password may hold slashes, quotes and `@`. Where in
doubt, more is hidden than need be.
"""

import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

HIDDEN = "***"

IN_VALUE = r"\S"
"""Characters of a URI where a text is one value, such as an override."""
IN_FILE = r'(?:[^\s"<>\\]|\\+[:=,@/()])'
"""The same in JSON, HTML or whatever else: a URI never takes what ends a string with it."""
SCHEME = r"\b([A-Za-z][A-Za-z0-9+.-]*)(\\*:)//"
"""Hydra puts a backslash before a colon."""

NAMES = ("password", "passwd", "passphrase", "secret", "credential", "signature", "authorization")
"""Parts of names of secrets, however these are written."""
SHORT_NAMES = ("token", "pwd", "pass", "sig", "auth")
"""Their last words: `access_token`, but not `stop_tokens`."""
JOINED_NAMES = ("apikey", "accesskey", "secretkey", "privatekey", "accountkey", "accesstoken", "authtoken")
"""How they end, without what joins their words: `access_key`, but not `sort_key`."""
QUERY_NAMES = ("key", "sas", "code")
"""Names that only a query has for secrets."""
TOKEN_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|dapi[0-9a-f]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|sk-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]+\.[\w-]+)"
)
"""Of Hugging Face, Databricks, GitHub, GitLab, Amazon, Slack and OpenAI; and JSON web tokens."""
QUOTED = r"""'[^']*'|"(?:[^"\\]|\\.)*\""""
FIELD = re.compile(rf"""(?<![\w.-])([\w.-]{{1,100}})(\\*=)({QUOTED}|[^\s&;,"'<>\\]+)""")
ENTRY = re.compile(rf"""(?<=['"])([\w.-]{{1,100}})(['"]\s*:\s*)({QUOTED})""")
"""Of a dict or a JSON object as text."""
NESTED = re.compile(
    r"""(?<!\\)(\\{1,63})(["'])([\w.-]{1,100})\1\2(\s*:\s*)\1\2((?:(?!\2)[^\\]|\\+(?!["'\\]).|\1\\+["'])*)\1\2""",
    re.DOTALL,
)
"""Of a JSON object within a string of another one: as many backslashes are before each of its quotes."""
BEARER = r"(?:Bearer|Basic|Digest|Token)\s+"
WORD = r"""[^\s&;,"'<>\\]+"""
SECRET_WORD = re.compile(rf"(?:{BEARER})?{WORD}|{QUOTED}")
LINE = re.compile(r"(?<![\w.-])([\w.-]{1,100}):[ \t]+")
"""Begins a line of a header or of YAML."""
OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w-]{1,100})\s+")
TOKEN_AFTER = re.compile(r"\b([Bb]earer\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{8,}=*")
ENCODED = re.compile(
    r"""(?:(?<![A-Za-z0-9+.-])|(?<=%[0-9A-Fa-f]{2}))[A-Za-z][A-Za-z0-9+.-]*%(?:25)*3[Aa]%(?:25)*2[Ff][^\s"'<>&\\]+"""
)
"""A URI within another one."""
ONE_SLASH = re.compile(r"""\b(https?\\*:/?)(?!/)([^\s"'<>]+)@""", re.IGNORECASE)
NO_SCHEME = re.compile(r"""(?<![\w/:@.+*-])[\w.+-]{1,100}:[^\s/:@"'<>\\,]{6,}@(?=[\w\[])""")
"""A URI that lacks a slash, or what is before them: MLflow refuses it, but it is written down."""
OVERRIDE = re.compile(r"(?s)([+~]*([\w.@/-]{1,200})=)(.+)")

MIN_CHARACTERS = 6
"""Of a secret that is looked for wherever it stands alone: shorter ones are words of other things, too."""

remembered: set[str] = set()
"""Secrets of this process, and their parts."""


def redacted(value: Any) -> Any:
    """The same without secrets: of plain data, each string and each key of it."""
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
    """The same of the text of a file of any kind. JSON and HTML stay what they are."""
    return without_secrets(text, IN_FILE)


def redacted_message(text: str) -> str:
    """The same of what people read, such as a traceback: it can hold a part of a URI, torn out of it."""
    for secret in sorted(remembered, key=len, reverse=True):
        if secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return redacted_text(text)


def without_secrets(text: str, character: str) -> str:
    """The same; `character` is the pattern of what a URI can hold."""
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
    """One, and those that follow it without a space."""
    scheme, colon_after, rest = found.groups()
    user, at, rest = rest.rpartition("@")
    own = re.match(r"[^/?#'),]*", rest)
    assert own is not None
    place, rest = own[0], rest[own.end() :]
    if scheme.lower().startswith("databricks") and place and not at:  # a profile, or scope and key: it can be a token
        place = HIDDEN
    host, colon, port = place.partition(":")
    if colon and host and not at and not re.match(r"\[|.*\$\{", place) and not re.match(r"\d*\W*$|\*", port):
        place = f"{host}:{HIDDEN}"  # user and password of which the rest was forgotten
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
    """A percent-encoded URI, as it would be without that."""
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
    """The same where a secret follows a name of it. A name that means other things, too, has to be followed by what
    looks like a token: `unexpected token: end of file` stays."""
    parts, end = [], 0
    for found in name.finditer(text):
        value = SECRET_WORD.match(text, found.end())
        if found.start() < end or value is None or value[0] in EMPTY or not is_secret(found[1]):
            continue
        like_token = len(value[0]) >= MIN_CHARACTERS and re.search(r"\d", value[0]) and re.search("[A-Za-z]", value[0])
        if is_named_so(found[1]) or like_token:
            mark = value[0][0] if value[0][0] in "'\"" else ""
            parts += [text[end : value.start()], mark, HIDDEN, mark]
            end = value.end()
    return "".join([*parts, text[end:]])


EMPTY = ("null", "None", "true", "false")
"""What stands where there is no secret, or only whether there is one."""


def is_secret_option(argument: object) -> bool:
    """Whether the next argument is a secret."""
    return isinstance(argument, str) and re.fullmatch(r"--[A-Za-z][\w-]+", argument) is not None and is_secret(argument)


def is_secret(name: str) -> bool:
    """Whether a field is called like something that nobody else should know."""
    if is_named_so(name):
        return True
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name) if word]
    return words[-1:] in ([word] for word in SHORT_NAMES) and words[-2:-1] != ["per"]  # joules_per_token


def is_named_so(name: str) -> bool:
    """Whether that name is of nothing else."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().rpartition(".")[2])
    return any(part in plain for part in NAMES) or plain.endswith(JOINED_NAMES)


def remember(uri: str | None) -> None:
    """Of a URI that will be used: what is secret in it is taken out of what this process tells."""
    if uri is None:
        return
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return
    before, at, _ = rest.rpartition("@")
    user, colon, password = before.partition(":")
    found = [password if colon else user] if at and password != user else []
    found += [value for key, value in re.findall(r"[?&;#]([^=&;#?]+)=([^&]*)", rest) if is_secret(unquote_plus(key))]
    if scheme.lower().startswith("databricks") and not at:
        found += [rest]
    for secret in found:
        remember_whole(secret)


def remember_whole(secret: str) -> None:
    """The same of a text that is secret, whatever is in it."""
    parts = [secret, unquote_plus(secret), *re.split(r"[/?#@:\s'\"]", secret)]
    remembered.update(part for part in parts if len(part) >= MIN_CHARACTERS)
