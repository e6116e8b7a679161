"""The part of CBOR that messages are written in, checked byte by byte before any of it is decoded.

A CBOR decoder can be asked for dates, big numbers, regular expressions, shared and cyclic structures, containers of any
depth and declared length. None of that is ours: integers of 64 bits, byte and text strings, arrays, maps with integer
and text keys, floats, true, false and null, all of definite length, few and shallow, and nothing behind the end.
"""

# An envelope, its body, a record in the body, a list in that, and as many again for what newer peers may say.
MAX_DEPTH = 8
# The longest message of today has about sixty items.
MAX_ITEMS = 2048

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
# false, true, null, and floats of 16, 32 and 64 bits.
_ALLOWED_OTHER = frozenset({20, 21, 22, 25, 26, 27})


def flaw(data: bytes, most: int = MAX_ITEMS) -> str | None:
    """Why these bytes are not one item of the CBOR described above, or None if they are. Text may still be no UTF-8.

    most: how many items there may be, of which each takes memory however few bytes it has.
    """
    at, items = 0, 1
    # For each open container, how many items it still lacks, and whether keys alternate with values in it.
    lacking, is_map = [1], [False]
    while lacking:
        if lacking[-1] == 0:
            lacking.pop()
            is_map.pop()
            continue
        is_key = is_map[-1] and lacking[-1] % 2 == 0
        lacking[-1] -= 1
        if at >= len(data):
            return "ends early"
        major, short = data[at] >> 5, data[at] & 31
        if short > 27:
            return "a length is indefinite or reserved"
        width = 0 if short < 24 else 1 << (short - 24)
        value = int.from_bytes(data[at + 1 : at + 1 + width]) if width else short
        at += 1 + width
        if is_key and major not in (_UNSIGNED, _TEXT):
            return "a key is neither a number nor a text"
        if major in (_BYTES, _TEXT):
            at += value
        elif major in (_ARRAY, _MAP):
            count = value * 2 if major == _MAP else value
            items += count
            lacking.append(count)
            is_map.append(major == _MAP)
        elif major == _TAG or (major == _OTHER and short not in _ALLOWED_OTHER):
            return f"it uses tags or simple values (0x{data[at - 1 - width]:02x})"
        if at > len(data):
            return "ends early"
        if items > most or len(lacking) > MAX_DEPTH + 1:
            return f"over {most} items or {MAX_DEPTH} levels"
    return None if at == len(data) else "more bytes follow its end"
