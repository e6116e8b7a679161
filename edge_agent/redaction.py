"""Secrets taken out of text: what an operator copies into a ticket must not let anybody into the fleet."""

import re

HIDDEN = "(removed)"

_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
# As protocol.token writes them; shorter ones may be half of one.
_TOKEN = re.compile(r"\bsft1[a-z2-7]{8,}", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/?#\s\"']*@")
_NAMES = r"[\w.-]*(?:password|passwd|passphrase|secret|token|credential|api_?key|private_?key|authorization)[\w.-]*"
# NAME = value, "NAME": "value", ?NAME=value and --NAME value, to the end of the value.
_NAMED = re.compile(rf"(?i)((?:\b{_NAMES}[\"']?\s*[=:]|--{_NAMES}\s)\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&}}\]]+)")
_SECRET_NAME = re.compile(rf"(?i){_NAMES}")


def redacted(text: str) -> str:
    """The text without PEM blocks, tokens, user names and passwords of URLs, and values of what is named a secret."""
    text = _PEM.sub(HIDDEN, text)
    text = _TOKEN.sub(HIDDEN, text)
    text = _USER.sub(f"{HIDDEN}@", text)
    return _NAMED.sub(lambda found: found[1] + HIDDEN, text)


def redacted_value(name: str, value: object) -> object:
    """A setting's or variable's value, without what must not be shown."""
    if _SECRET_NAME.fullmatch(name):
        return HIDDEN
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, list | tuple):
        return [redacted_value(name, one) for one in value]
    return value
