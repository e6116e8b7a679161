"""Secrets taken out of text: what an operator copies into a ticket must not let anybody into the fleet."""

import re
from collections.abc import Mapping

HIDDEN = "(removed)"

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
# As protocol.token writes them; shorter ones may be half of one.
_TOKEN = re.compile(r"\bsft1[a-z2-7]{8,}", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/?#\s\"']*@")
_BEARER = re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}")

_SECRET = (
    r"(?:pass(?:word|wd|phrase|code)|secret|token|credential|cookie|psk|authorization"
    r"|(?:api|access|account|auth|private|shared|signing)[-_ ]?key)"
)
_SECRET_NAME = re.compile(rf"(?i)[\w.-]*{_SECRET}[\w.-]*")


def _bracketed(depth: int) -> str:
    """A list or table of TOML or JSON, with others in it; cut short, all that is left. Brackets in strings are none."""
    inner = f"|{_bracketed(depth - 1)}" if depth else ""
    return rf"[\[{{](?:\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'{inner}|[^\]}}])*+(?:[\]}}]|\Z)"


_STRING = r"\"\"\"[\s\S]*?(?:\"\"\"|\Z)|'''[\s\S]*?(?:'''|\Z)|\"(?:[^\"\\]|\\[\s\S])*\"|'[^']*'"
# Not the quote that ends a line of JSON, where the name and its value are in a string.
_QUOTE = r"\"(?![\]},]*[ \t]*$)"
_REST = rf"(?:[^\n\"]|{_QUOTE})*"
_JOINED = rf"(?:{_QUOTE}[^\"\n]*\"|'[^'\n]*'|[^\s,;}}\])\"])*"
# NAME = value: what has no quotes may have spaces in it, and shells join what stands together.
_BARE = rf"({_SECRET}[\w.-]{{0,64}}+[ \t]*[=:]+>?\s*)(?:(?:{_STRING}){_JOINED}|(?:{_bracketed(3)})?{_REST})"
# "NAME": value and ?NAME=value in quotes, also where those are escaped, in a string of JSON.
_QUOTED = (
    rf"({_SECRET}[\w.-]{{0,64}}+\\?[\"']\s*[=:]+>?\s*)"
    rf"(?:{_STRING}|\\\"[^\n]*?(?:\\\"|$)|{_bracketed(3)}|[\"'][^\n]*|[^\s,;&}}\]]+)"
)
_OPTION = rf"(--[\w.-]{{0,32}}{_SECRET}[\w.-]{{0,64}}+\s+)(?:{_STRING}|\S+)"
_NAMED = re.compile(f"(?im){_QUOTED}|{_BARE}|{_OPTION}")


def redacted(text: str) -> str:
    """The text without PEM blocks, tokens, user names and passwords of URLs, and values of what is named a secret."""
    text = _PEM.sub(HIDDEN, text)
    text = _TOKEN.sub(HIDDEN, text)
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _NAMED.sub(lambda found: f"{found[1] or found[2] or found[3]}{HIDDEN}", text)
    return _BEARER.sub(lambda found: found[1] + HIDDEN, text)


def redacted_value(name: str, value: object) -> object:
    """A setting's or variable's value, without what must not be shown."""
    if _SECRET_NAME.fullmatch(name):
        return HIDDEN
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list | tuple):
        return [redacted_value(name, one) for one in value]
    if isinstance(value, Mapping):
        return {key: redacted_value(str(key), one) for key, one in value.items()}
    return value
