"""`fleet-export sign` and `release-key`: the release of a bundle, and the key for it, away from the coordinator."""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from protocol.bundle import open_bundle
from protocol.command import Parser
from protocol.disk import write_durably
from protocol.errors import ConfigurationError
from protocol.private_files import check_private, write_private
from protocol.release import DAY_S, RELEASE_FILE, Release, sign_release
from protocol.signing import Signer, load_signer, new_signing_key
from protocol.topics import check_name

SIGN_EPILOG = """\
example: fleet-export sign bundles/digits --key release.key --fleet home --version 3 --expires 90d
Devices refuse a version below the highest that they saw, unless they still hold that bundle. To go back to an older
bundle, sign it with a higher version. exit codes: 0 ok, 1 failure, 3 the bundle, the key or an option is at fault
"""
KEY_EPILOG = """\
example: fleet-export release-key --out release.key
Then, beside the coordinator: fleet-coordinator keys rotate --release --public release.pub --config coordinator.toml
"""


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fleet-export sign",
        description="Signs a bundle with the fleet's release key: writes release.cbor beside its manifest.",
        epilog=SIGN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="the release key, mode 0600")
    parser.add_argument("--fleet", required=True, metavar="NAME", help="the fleet that it is for")
    parser.add_argument("--version", type=int, required=True, metavar="N", help="one more than the last one signed")
    parser.add_argument("--expires", default="90d", metavar="TIME", help="from now: 30d, 90d (default: 90d)")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser.parse_args(list(words))


def run(options: argparse.Namespace) -> int:
    """Signs and prints; returns the exit code."""
    bundle, signer, now_s = open_bundle(options.bundle), _signer(options.key), int(time.time())
    try:
        check_name("fleet", options.fleet)
        release = Release(options.fleet, bundle.digest, options.version, now_s, now_s + _seconds(options.expires))
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from None
    path = options.bundle / RELEASE_FILE
    try:
        write_durably(path, sign_release(release, signer))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written ({error.strerror})") from None
    if options.json:
        facts = {"bundle": bundle.digest.hex(), "version": release.version, "expires_s": release.expires}
        print(json.dumps(facts | {"key": signer.key_id.hex(), "path": str(path)}))
    else:
        ends = time.strftime("%Y-%m-%d", time.gmtime(release.expires))
        print(f"wrote {path}: version {release.version} for fleet {release.fleet} until {ends}")
    return 0


def key_options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fleet-export release-key",
        description="Makes a release key, and beside it the .pub file that the coordinator is given.",
        epilog=KEY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the private key; never overwritten")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser.parse_args(list(words))


def make_key(options: argparse.Namespace) -> int:
    """Makes a key and prints what it is called; returns the exit code."""
    path, public = options.out, options.out.with_suffix(".pub")
    for taken in (path, public):
        if taken.exists():
            raise ConfigurationError(f"--out: {taken} is there already; name another file, or move it away")
    private = new_signing_key()
    signer = load_signer(private)
    try:
        write_private(path, private)
        write_durably(public, signer.public.hex().encode("ascii") + b"\n")
    except OSError as error:
        raise ConfigurationError(f"--out: {path} cannot be written ({error.strerror})") from None
    if options.json:
        print(json.dumps({"id": signer.key_id.hex(), "private": str(path), "public": str(public)}))
    else:
        print(f"wrote {path} (keep it private, and keep a copy) and {public}: release key {signer.key_id.hex()}")
    return 0


def _signer(path: Path) -> Signer:
    try:
        check_private(path)
        signer = load_signer(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--key: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"--key: {path}: {error}") from None
    if not signer.public:
        raise ConfigurationError(f"--key: {path} is no Ed25519 key; fleet-export release-key makes one")
    return signer


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,4})d", text)
    if not found or int(found[1]) < 1:
        raise ValueError(f"expires: {text!r} must be a number of days with d behind it, as in 90d")
    return int(found[1]) * DAY_S
