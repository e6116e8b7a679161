"""podman or docker as far as images need them: a program for PATH that keeps names in a file and notes its words."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = """#!{python} -SE
import json, sys
from pathlib import Path
folder, words = Path({folder!r}), sys.argv[1:]
if words[:1] == ["--runtime"]:
    words = words[2:]
with (folder / "told").open("a") as told:
    print(json.dumps(words), file=told)
kept = folder / "images"
images = json.loads(kept.read_text()) if kept.exists() else {{}}
def says(text):
    print(text)
if words[0] == "info":
    says(str(folder))
elif words[:2] == ["image", "inspect"]:
    if any(name not in images for name in words[2:]):
        sys.exit(1)
    says(json.dumps([images[name] for name in words[2:]]))
elif words[0] == "images":
    says("\\n".join(images))
elif words[0] == "rmi":
    for name in words[1:]:
        del images[name]
elif words[0] in ("build", "import"):
    if (folder / "fails").exists():
        sys.exit("Error: initializing source docker://debian:12-slim: pinging container registry: no route to host")
    name = words[words.index("--tag") + 1] if words[0] == "build" else words[-1]
    labels = dict(words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "--label")
    if words[0] == "import":
        labels = {{"sparsefleet.kind": "root"}}
    else:
        context = Path(words[-1])
        lies = sorted(str(path.relative_to(context)) for path in context.rglob("*"))
        (folder / "context").write_text(json.dumps(lies))
    images[name] = {{"Id": name, "RepoTags": [name], "Size": 2 * 10**8, "Created": "2026", "Architecture": "amd64",
        "Config": {{"Labels": labels}}}}
kept.write_text(json.dumps(images))
"""


@dataclass(frozen=True, slots=True)
class FakeEngine:
    folder: Path

    def told(self, verb: str) -> list[list[str]]:
        """The command lines that began with a verb."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words for words in map(json.loads, lines) if words[0] == verb]

    def context(self) -> list[str]:
        """What lay in the folder of the last build."""
        return list(json.loads((self.folder / "context").read_text()))

    def has(self, name: str, labels: dict[str, str]) -> None:
        """Gives it the one image, as if somebody had built it."""
        image = {"Id": name, "RepoTags": [name], "Config": {"Labels": labels}}
        (self.folder / "images").write_text(json.dumps({name: image}))

    def fail(self) -> None:
        """From now on nothing can be built or imported."""
        (self.folder / "fails").touch()


def fake_engine(folder: Path, name: str) -> FakeEngine:
    """Puts one into a folder, for PATH."""
    program = folder / name
    program.write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    return FakeEngine(folder)
