"""Every decoder that reads bytes from outside, one entry each: a new one is a line in `TARGETS` and its `prepare`."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.fuzzing import frame_mutations, tree_mutations
from benchmarks.fuzzing import samples as s
from benchmarks.fuzzing.bytes_mutations import MOST_BYTES
from benchmarks.fuzzing.target import Prepared, Target
from coordinator.authority import requested_key
from edge_agent import checkpoint
from edge_agent.enrolment import parse_endpoint
from edge_agent.gossip import sums
from edge_agent.gossip.carry import pack_carry, unpack_carry
from edge_agent.gossip.store import NO_NODE, pack_node, unpack_node
from edge_agent.personal import shelf
from edge_agent.runtimes import graph_check, safetensors
from edge_agent.runtimes.graph_writer import Named, Node, write_graph
from edge_agent.runtimes.parameters import parse_parameters
from edge_agent.runtimes.reference import MAX_BYTES, parse_record
from protocol import enrolment, envelope
from protocol.cbor import MAX_ITEMS
from protocol.database import SEAL_BYTES
from protocol.database import sealed as add_crc
from protocol.envelope import Envelope
from protocol.errors import BundleError, ConfigurationError, SparsefleetError
from protocol.keyring import OnlineKey, Ring
from protocol.layout import layout_of
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, format_manifest, parse_manifest
from protocol.messages import CHUNK_BYTES, MAX_MESSAGE_BYTES, BlobRef, Chunk
from protocol.profile import MAX_PROFILE_BYTES, Profile, format_profile, parse_profile
from protocol.release import Release, check_release, sign_release
from protocol.sealed import holds, seal_in, sealed
from protocol.signing import Signer, ed25519_verifier, load_signer
from protocol.statements import MAX_STATEMENT, read_statement, state
from protocol.token import Token, parse_token
from protocol.topics import Topics
from protocol.transfer import Receiving, receive
from protocol.width import narrowed
from sparse import codecs
from sparse.codecs import PayloadError, Shared, max_update_bytes, parse_codec
from sparse.gossip.choco import Compressor
from sparse.gossip.relay import Relayed
from tests import tiny

# Every selection, value format and index coding, and those of version 2 that entropy coding adds.
CODECS = (
    *("all/float32", "all/float16", "all/bfloat16", "all/int8", "all/int4-stochastic@64", "all/qsgd:5", "all/sign"),
    *("all/drive", "topk:0.05/float32/bitmap", "topk:0.05/float16/rice", "topk:0.05/int8/rice@tensor"),
    *("topk:0.05/ternary/rans", "topk:0.05@tensor/int4/rans@tensor", "topk:0.4/sign/rans", "topk:0.1/qsgd:7/auto"),
    *("randk:0.1/float16", "randk:0.1/int8@whole", "powersgd:2/float16", "mask/float16", "mask/int8"),
)


# What Python takes to look at anything at all, where a target's own limit is less.
FLOOR_BYTES = 16 << 10
# Tables of an entropy code, which are of one size whatever the vector: five bytes for each of 2**14 slots, and half
# as much again while they are made.
TABLE_BYTES = 128 << 10


def _envelope() -> Prepared:
    return Prepared(envelope.decode, _envelopes(), MAX_MESSAGE_BYTES)


def _envelopes() -> list[bytes]:
    return [envelope.encode(Envelope(3, i, 1000, body)) for i, body in enumerate(s.BODIES)]


def _chunk() -> Prepared:
    blob = BlobRef(s.DIGEST, 3 * CHUNK_BYTES + 100)
    parts = [Chunk(s.DIGEST, i, bytes(100 if i == 3 else CHUNK_BYTES)) for i in (0, 3)]

    def decode(data: bytes) -> object:
        found = envelope.decode(data)
        if isinstance(found, Envelope) and isinstance(found.body, Chunk):
            return receive(Receiving(blob, have=2), found.body, 5.0)
        return found

    return Prepared(decode, [envelope.encode(Envelope(1, 2, 3, part)) for part in parts], MAX_MESSAGE_BYTES)


def _manifest() -> Prepared:
    def decode(data: bytes) -> object:
        # Not from its cache.
        found = parse_manifest.__wrapped__(data)
        for variant in found.variants:
            layout_of(narrowed(found, variant.name), variant.name)
        return found

    return Prepared(decode, [format_manifest(s.manifest()), format_manifest(_tiny_manifest())], MAX_MANIFEST_BYTES)


def _tiny_manifest() -> Manifest:
    """Of one layer and a record."""
    held = json.loads(format_manifest(s.manifest()))
    held |= {"variants": held["variants"][:1], "groups": [], "axes": {}}
    return parse_manifest(json.dumps(held).encode())


def _parameters() -> Prepared:
    manifest = s.manifest()
    parts = {t.name: np.ones(t.shape, np.float32) for t in manifest.tensors}
    seeds = [safetensors.format_tensors(parts, {"format": "1"})]
    return Prepared(partial(parse_parameters, manifest), seeds, safetensors.MAX_HEADER_BYTES)


def _record() -> Prepared:
    with tempfile.TemporaryDirectory() as folder:
        manifest = tiny.write_bundle(Path(folder), recorded=True).manifest
    return Prepared(partial(parse_record, manifest, "reference.safetensors"), [tiny.reference()], MAX_BYTES)


def _checkpoint() -> Prepared:
    disk = s.KeptFile()
    seeds = [s.checkpoint_file(disk)]

    def decode(data: bytes) -> object:
        disk.data = data
        return checkpoint.load(Path("run.ckpt"), s.RUN, 20, 16, disk)  # type: ignore[arg-type]

    return Prepared(decode, seeds, safetensors.MAX_HEADER_BYTES)


def _update(name: str) -> Prepared:
    spec, shared = parse_codec(name), s.shared() if name.startswith("mask") else None
    gradient = s.vectors(9)[0]
    seeds = []
    for seed in (1, 2):
        parameters, buffers, residual = s.vectors(seed)
        given = (parameters, buffers, residual, spec, s.LAYOUT, shared, gradient, s.SHAPES, seed)
        seeds.append(codecs.encode_update(*given)[0])

    def decode(data: bytes) -> object:
        return codecs.decode_update(data, s.PARAMETERS, s.BUFFERS, s.LAYOUT, spec, shared, s.SHAPES)

    return Prepared(decode, seeds, _update_limit([name], shared))


def _update_limit(names: Sequence[str], shared: Shared | None) -> int:
    """The model's own vectors and the longest update: what a receiver holds of an update that is right."""
    given = (s.PARAMETERS, s.BUFFERS)
    longest = max(max_update_bytes(*given, parse_codec(name), shared, s.SHAPES) for name in names)
    return 4 * (s.PARAMETERS + s.BUFFERS) + longest + (TABLE_BYTES if any(map(_is_entropy, names)) else 0)


def _difference() -> Prepared:
    """The payload says its codec itself, so any of them may come."""
    base = np.concatenate(s.vectors(3)[:2])
    counts, names = (s.PARAMETERS, s.BUFFERS), [name for name in CODECS if not name.startswith("mask")]
    seeds = []
    for name in names:
        target = np.concatenate(s.vectors(4)[:2])
        seeds.append(codecs.encode_difference(base, target, *counts, parse_codec(name), s.LAYOUT, s.SHAPES, 5))

    def decode(data: bytes) -> object:
        return codecs.apply_difference(base, data, *counts, s.LAYOUT, s.SHAPES)

    return Prepared(decode, seeds, 4 * sum(counts) + _update_limit(names, None))


def _mask(whole: bool) -> Prepared:
    base = None if whole else s.mask(2)
    seeds = [codecs.encode_mask(s.mask(seed), base) for seed in (1, 3)]
    few = s.mask(2)
    few[::500] ^= True
    seeds.append(codecs.encode_mask(few, base))

    def decode(data: bytes) -> object:
        return codecs.decode_mask(data, s.PARAMETERS, base)

    return Prepared(decode, seeds, 4 * s.PARAMETERS + codecs.max_mask_bytes(s.PARAMETERS))


def _ballot() -> Prepared:
    seeds = [codecs.encode_ballot(s.mask(seed), s.LAYOUT) for seed in (1, 2)]
    limit = 2 * s.PARAMETERS + codecs.ballot_bytes(s.PARAMETERS)
    return Prepared(lambda data: codecs.decode_ballot(data, s.PARAMETERS, s.LAYOUT), seeds, limit)


def _sum() -> Prepared:
    """What a neighbour says under RelaySum: how many models, and their sum."""
    compressor = Compressor(parse_codec("all/float16"), s.LAYOUT, s.SHAPES)
    seeds = [sums.pack(Relayed(s.vectors(seed)[0], 3, 1), compressor) for seed in (1, 2)]

    def decode(data: bytes) -> object:
        return sums.unpack(data, 1, s.PARAMETERS, compressor)

    return Prepared(decode, seeds, _update_limit(["all/float16"], None))


def _node() -> Prepared:
    """Behind its CRC-32, as an agent of another version, or memory that fails, may have left it."""
    seeds = [pack_node(node)[:-SEAL_BYTES] for node in s.nodes()]
    return Prepared(lambda data: unpack_node(add_crc(data), s.NODE_VALUES), seeds, safetensors.MAX_HEADER_BYTES)


def _carry() -> Prepared:
    """Behind its CRC-32, as the node; momentum in it is a safetensors file."""
    seeds = [pack_carry(s.carry())[:-SEAL_BYTES]]
    return Prepared(lambda data: unpack_carry(add_crc(data)), seeds, safetensors.MAX_HEADER_BYTES)


def _personal() -> Prepared:
    """Behind its CRC-32, as the node."""
    seeds = [shelf.pack(s.personal())[:-SEAL_BYTES]]
    return Prepared(lambda data: shelf.unpack(add_crc(data)), seeds, safetensors.MAX_HEADER_BYTES)


def _codec_name() -> Prepared:
    return Prepared(_text(parse_codec), [name.encode() for name in CODECS], FLOOR_BYTES)


def _enrolment() -> Prepared:
    said: tuple[enrolment.Message, ...] = (
        enrolment.AskRoots(),
        enrolment.Enrol("kitchen-pi", bytes(16), bytes(250)),
        enrolment.Renew(bytes(250)),
        enrolment.Roots((bytes(500), bytes(400))),
        enrolment.Issued(bytes(500), (bytes(400),), "home", "mqtts://:8883", 1.5, 2.5),
        enrolment.Refused("token", "is not known here"),
    )
    return Prepared(enrolment.decode, [enrolment.encode(one)[4:] for one in said], enrolment.MAX_FRAME)


class _Socket:
    """Gives what it has in parts, as a network does."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def settimeout(self, seconds: float) -> None:
        """Nothing here takes time."""

    def recv(self, most: int) -> bytes:
        part = self._data[self._at : self._at + min(most, 1000)]
        self._at += len(part)
        return part


def _frame() -> Prepared:
    def decode(data: bytes) -> object:
        return enrolment.receive(_Socket(data), 1.0, lambda: 0.0)  # type: ignore[arg-type]

    seeds = [enrolment.encode(enrolment.Renew(bytes(250))), enrolment.encode(enrolment.Roots((bytes(3000),)))]
    return Prepared(decode, seeds, enrolment.MAX_FRAME)


def _request() -> Prepared:
    """The valid requests are in the corpus, for keys cannot be drawn by a seed."""
    return Prepared(requested_key, [], enrolment.MAX_REQUEST)


def _token() -> Prepared:
    return Prepared(_text(parse_token), [Token(bytes(range(32)), bytes(range(16))).text.encode()], FLOOR_BYTES)


def _topic() -> Prepared:
    topics = Topics("home")
    seeds = [topics.device("kitchen-pi", channel) for channel in ("state", "up", "up/blob", "down", "down/blob")]
    return Prepared(_text(topics.parse), [seed.encode() for seed in (*seeds, topics.everyone("notice"))], 65535)


def _endpoint() -> Prepared:
    return Prepared(_text(parse_endpoint), [b"server.example:8884", b"[::1]:8884", b"10.0.0.7"], FLOOR_BYTES)


def _graph() -> Prepared:
    nodes = [Node("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1], "group": 1}), Node("Relu", ["c"], ["y"])]
    ports = [Named("x", [1, 1, 8, 8], np.dtype(np.float32))], [Named("y", [1, 4, 8, 8], np.dtype(np.float32))]
    graph = write_graph(nodes, *ports, {"w": np.ones((4, 1, 3, 3), np.float32), "i": np.arange(5)})

    def decode(data: bytes) -> object:
        graph_check.check_graph("train.onnx", data)
        return data

    return Prepared(decode, [graph], MOST_BYTES)


def _profile() -> Prepared:
    profile = Profile(
        1, "pi", "2026-01-02", "aarch64", "A76", 4, 8000, "onnxruntime 1.20", 2, 45.0, 900.0, {"a": 1.0}, 0.1
    )
    return Prepared(partial(parse_profile, "pi.json"), [format_profile(profile).encode()], MAX_PROFILE_BYTES)


def _signer() -> Signer:
    """The same in every run; it guards nothing."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return load_signer(key.private_bytes(*form))


def _sealed() -> Prepared:
    signer, topic = _signer(), "sf/1/home/kitchen-pi/up"
    verifier = ed25519_verifier(signer.public)

    def decode(data: bytes) -> object:
        return seal_in(data) and holds(topic, data, verifier)

    return Prepared(decode, [sealed(topic, one, signer) for one in _envelopes()], MAX_MESSAGE_BYTES)


def _release() -> Prepared:
    """Also what stands behind a seal that does not hold, as if it did."""
    signer = _signer()
    release = Release("home", s.DIGEST, 3, 1000, 2000)

    def decode(data: bytes) -> object:
        check_release(data, [signer.public], "home", s.DIGEST, 1500.0)
        return read_statement(Release, data)

    return Prepared(decode, [sign_release(release, signer)], MAX_STATEMENT + 16 * MAX_ITEMS)


def _ring() -> Prepared:
    """What stands behind its seal, as if somebody with the key had signed it."""
    ring = Ring("home", 2, 1000, (s.DIGEST, s.DIGEST), (OnlineKey(s.DIGEST, 2000),))
    return Prepared(
        lambda data: read_statement(Ring, data), [state("keyring", ring, _signer())], MAX_STATEMENT + 16 * MAX_ITEMS
    )


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """Of text, which comes decoded: every byte a character."""
    return lambda data: parse(data.decode("latin-1"))


def _is_entropy(codec: str) -> bool:
    return any(word in codec for word in ("int8", "int4", "qsgd", "rans", "auto", "ternary"))


def _share(codec: str) -> float:
    """Entropy codes take up to a thousand steps, however short the vector: fewer of these, or they are all of a run."""
    return 0.2 if _is_entropy(codec) else 1.0


_FRAMES = frame_mutations.update
_CBOR, _JSON, _TENSORS = tree_mutations.cbor, tree_mutations.text_json, tree_mutations.safetensors
_VECTORS = "the vectors, the longest update of the codec and, of entropy codes, TABLE_BYTES"

_OF_MASK = "the vector that it is of, and the longest mask"
_FLOOR = "FLOOR_BYTES"

TARGETS: tuple[Target, ...] = (
    Target("envelope", _envelope, "MAX_MESSAGE_BYTES", mutation=_CBOR, share=6),
    Target("chunk", _chunk, "MAX_MESSAGE_BYTES", mutation=_CBOR),
    Target("manifest", _manifest, "MAX_MANIFEST_BYTES", (BundleError,), _JSON, share=3),
    Target("parameters", _parameters, "MAX_HEADER_BYTES", (BundleError,), _TENSORS, share=2),
    Target("reference record", _record, "MAX_BYTES of a record", (BundleError,), _TENSORS, share=2),
    Target("checkpoint", _checkpoint, "MAX_HEADER_BYTES", (ConfigurationError,), _TENSORS),
    *(
        Target(f"update {name}", partial(_update, name), _VECTORS, (PayloadError,), _FRAMES, _share(name))
        for name in CODECS
    ),
    Target("difference", _difference, f"the model and {_VECTORS}", (PayloadError,), _FRAMES),
    Target("mask", partial(_mask, True), _OF_MASK, (PayloadError,), share=2),
    Target("mask of a base", partial(_mask, False), _OF_MASK, (PayloadError,)),
    Target("ballot", _ballot, "the bits as bytes, twice, and the ballot", (PayloadError,)),
    Target("sum of neighbours", _sum, _VECTORS, (PayloadError,), _FRAMES),
    Target("node of gossip", _node, "MAX_HEADER_BYTES", NO_NODE, _CBOR),
    Target("carry of gossip", _carry, "MAX_HEADER_BYTES", mutation=_CBOR),
    Target("personal head", _personal, "MAX_HEADER_BYTES", mutation=_TENSORS),
    Target("codec name", _codec_name, _FLOOR, (ValueError,)),
    Target("enrolment", _enrolment, "MAX_FRAME", mutation=_CBOR, share=3),
    Target("enrolment frame", _frame, "MAX_FRAME", (ValueError, OSError)),
    Target("certificate request", _request, "MAX_REQUEST", mutation=frame_mutations.der, share=2),
    Target("seal", _sealed, "MAX_MESSAGE_BYTES", mutation=_CBOR),
    Target("release", _release, "MAX_STATEMENT, and 16 bytes for each of MAX_ITEMS", mutation=_CBOR),
    Target("ring", _ring, "MAX_STATEMENT, and 16 bytes for each of MAX_ITEMS", mutation=_CBOR),
    Target("token", _token, _FLOOR, (ValueError,)),
    Target("topic", _topic, "what MQTT allows of a topic"),
    Target("endpoint", _endpoint, _FLOOR, (SparsefleetError,)),
    Target("graph", _graph, "MOST_BYTES of an input", (BundleError,), frame_mutations.protobuf, share=3),
    Target("device profile", _profile, "MAX_PROFILE_BYTES", (ConfigurationError,), _JSON),
)
