"""JSON from outside, looked over before it is decoded: a decoder makes thirty bytes of objects out of each one of
`[{},{},{}]`, and four of every character of a text that has a single rare one in it.
"""

import json
import re
from typing import Any

# Of one text in it: names, reasons, digests and what a checkpoint says of its run are far shorter.
MAX_TEXT_BYTES = 1 << 16
# Ten for each tensor of the largest model; together they take no more than 12 MB.
MAX_VALUES = 100_000
# Characters beyond U+FFFF, as UTF-8 or escaped.
_RARE = re.compile(rb"[\xf0-\xff]|\\u[dD][89a-fA-F]")


def loads(data: bytes) -> Any:
    """What the bytes say. Raises ValueError or, for what nests too deep, RecursionError."""
    # Twice for a table, which is the dearest.
    values = data.count(b",") + data.count(b"[") + 2 * data.count(b"{")
    if values > MAX_VALUES:
        raise ValueError(f"{values} values are over the limit of {MAX_VALUES}")
    if _RARE.search(data):
        raise ValueError("it has characters beyond U+FFFF; rename what is called so")
    if data.count(b'"') > 4 * MAX_VALUES or _longest_text(data) > MAX_TEXT_BYTES:
        raise ValueError(f"a text is longer than {MAX_TEXT_BYTES} bytes, or there are too many")
    return json.loads(data.decode())


def _longest_text(data: bytes) -> int:
    """Bytes between two quotes, at most."""
    longest, begin = 0, 0
    while (end := data.find(b'"', begin)) >= 0:
        longest, begin = max(longest, end - begin), end + 1
    return longest
