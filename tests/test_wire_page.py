"""docs/wire.md, held against the code: its tables, its limits and its bytes."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from protocol import messages, topics, transfer
from protocol.envelope import TYPES, Envelope, encode
from protocol.keyring import OnlineKey, Ring
from protocol.messages import Withdraw
from protocol.release import Release
from protocol.sealed import SEALED_BYTES, sealed
from protocol.signing import load_signer
from protocol.statements import MAX_STATEMENT
from sparse.codecs import frame, header, parse_codec

PAGE = (Path(__file__).parent.parent / "docs" / "wire.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of every table row of a section, heads left out."""
    lines = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in line] for i, line in enumerate(lines) if not is_head(lines, i)]


def is_head(lines: list[list[str]], i: int) -> bool:
    rule = [set(line[0].strip()) == {"-"} for line in lines]
    return rule[i] or (i + 1 < len(lines) and rule[i + 1])


def drawn(title: str, block: int = 0) -> bytes:
    """The bytes of a drawing: what stands before the words, two spaces away."""
    drawing = re.findall(r"^```\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)[block]
    return bytes.fromhex("".join(re.split(r"  +", line)[0] for line in drawing.splitlines()))


def test_every_type_stands_there_with_its_number_and_its_fields() -> None:
    told = {int(row[0]): (row[1], row[2].split(", ")) for row in rows("Envelope") if len(row) == 3}
    assert told == {
        number: (kind.__name__, [field.name for field in dataclasses.fields(kind)]) for number, kind in TYPES.items()
    }


def test_the_drawn_message_is_what_is_sent() -> None:
    assert drawn("Envelope") == encode(Envelope(3, 7, 4096, Withdraw("r/1", "closed")))


def test_the_drawn_seal_is_what_is_sent() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    said = encode(Envelope(3, 7, 4096, Withdraw("r/1", "closed")))
    assert drawn("Seal") == sealed("sf/1/home/pi-1/down", said, load_signer(pem))
    assert f"{SEALED_BYTES} bytes" in section("Seal")


def test_the_records_that_are_signed_stand_there_with_their_fields() -> None:
    told = {row[0]: row[1].split(", ") for row in rows("Release and keyring")}
    kinds = (Release, Ring, OnlineKey)
    assert told == {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in kinds}
    assert f"At most {MAX_STATEMENT:,} bytes" in section("Release and keyring")


def test_the_drawn_frame_is_what_is_sent() -> None:
    vector = np.array([0.5, -2, 0, 0.25, 0, 1], np.float32)
    layout = bytes.fromhex("0011223344556677")
    assert drawn("Update") == frame.encode(vector, parse_codec("topk:0.34/float16/bitmap"), layout)


def test_the_drawn_frame_of_version_2_is_what_is_sent() -> None:
    vector = np.array([0.5, -2, 0, 0.25, 0, 1], np.float32)
    layout = bytes.fromhex("0011223344556677")
    assert drawn("Formats of version 2") == frame.encode(vector, parse_codec("topk:0.34/ternary/rice"), layout)


def test_the_frames_fields_follow_each_other_and_end_where_the_body_begins() -> None:
    *fields, body = rows("Update")
    at = 0
    for offset, size, _ in fields:
        assert int(offset) == at
        at += int(size)
    assert int(body[0]) == at == header.HEADER_BYTES
    for line, names in ((5, header.SELECTIONS), (6, header.VALUES), (7, header.INDICES)):
        said = next(row[2] for row in fields if row[0] == str(line))
        assert said.endswith(", ".join(f"{i} {name}" for i, name in enumerate(names)))


def test_the_limits_are_those_of_the_code() -> None:
    assert f"at most {messages.MAX_MESSAGE_BYTES:,} bytes" in section("Envelope")
    assert f"up to {messages.WINDOW} chunk numbers" in section("A blob on its way")
    assert f"At most {messages.MAX_DIFFERENCES} stand there" in section("Downlink")
    assert f"i x {messages.CHUNK_BYTES:,}" in section("A blob on its way")
    patience = f"after {transfer.FIRST_PATIENCE_S:.0f} s, then ever more rarely up to every "
    assert patience + f"{transfer.LONGEST_PATIENCE_S:.0f} s" in section("A blob on its way")


def test_the_channels_and_reserved_names_are_those_of_the_code() -> None:
    fleet = topics.Topics("home")
    told = [row[0] for row in rows("Topics")]
    assert told == list(get_args(topics.Channel))
    for channel in get_args(topics.Channel):
        assert fleet.parse(fleet.device("dev", channel)) == topics.DeviceTopic("dev", channel)
    for channel in get_args(topics.FleetChannel):
        assert f"`{fleet.everyone(channel).replace('home', '<fleet>')}`" in section("Topics")
    assert all(f"`{name}`" in section("Topics") for name in topics.RESERVED_DEVICES)
