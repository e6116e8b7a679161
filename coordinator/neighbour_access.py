"""What a private mosquitto lets devices of a gossip epoch say and hear: their own neighbours, and nobody else.

    sf/1/<fleet>/<device>/gossip          the device writes; its neighbours read
    sf/1/<fleet>/<device>/gossip/<other>  the device writes, of its neighbours alone; that neighbour reads
    sf/1/<fleet>/<device>/want/<other>    the device writes, of its neighbours alone; that neighbour reads

Access is by epoch: when the graph changes, the file is written anew and the broker reads it again. Those who are
connected stay; mosquitto asks its list at every message that it delivers, so a device that is no neighbour any more
hears nothing from then on, whatever it has subscribed to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from protocol.topics import check_name


def neighbours_acl(root: str, neighbours: Mapping[str, Sequence[str]]) -> str:
    """The lines of an ACL file, by device; a name that is none of a device's is a bug."""
    lines = []
    for device in sorted(neighbours):
        lines.append(f"\nuser {check_name('device', device)}\ntopic write {root}/{device}/gossip\n")
        for other in sorted(neighbours[device]):
            lines.append(f"topic read {root}/{check_name('device', other)}/gossip\n")
            for channel in ("gossip", "want"):
                lines.append(f"topic write {root}/{device}/{channel}/{other}\n")
                lines.append(f"topic read {root}/{other}/{channel}/{device}\n")
    return "".join(lines)


def write_acl(path: Path, everyone: str, root: str, neighbours: Mapping[str, Sequence[str]]) -> None:
    """Writes the file whole or not at all: a broker that reads half of it would lock devices out. everyone: the lines
    that hold in every epoch."""
    new = path.with_suffix(".new")
    new.write_text(everyone + neighbours_acl(root, neighbours))
    # A private file that others may write to is one that mosquitto warns of.
    new.chmod(0o600)
    new.replace(path)
