"""What decoders are tried against: a small manifest, vectors of a real model's size, one message of each kind."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_agent import checkpoint
from edge_agent.checkpoint import Run
from edge_agent.gossip.carry import Carry, Tally
from edge_agent.gossip.ear import Key
from edge_agent.gossip.node import Node
from edge_agent.gossip.sums import Sums
from edge_agent.momentum import Memory
from edge_agent.personal.head import Head
from edge_agent.personal.mixture import Means
from edge_agent.personal.shelf import Figures, Origin, Personal
from edge_agent.runtimes.optimizers import OptimizerState
from edge_agent.training import TrainingState
from protocol.gossip import Effort, Membership, Neighbour, Part, Standing, Want
from protocol.manifest import (
    FORMAT,
    Backend,
    ChannelGroup,
    Dropout,
    FileEntry,
    Inference,
    Load,
    Manifest,
    Parity,
    Port,
    Reference,
    Segment,
    Tensor,
    Variant,
)
from protocol.messages import (
    Announcement,
    BlobRef,
    Body,
    Chunk,
    CoordinatorState,
    DeviceState,
    Difference,
    Hello,
    Later,
    Need,
    Offer,
    OptimizerSpec,
    Receipt,
    SharedMask,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)
from sparse.codecs import Shared
from sparse.gossip.choco import Choco
from sparse.gossip.relay import Relayed
from sparse.masks import Mask

Vector = npt.NDArray[np.float32]

DIGEST = hashlib.sha256(b"").digest()
LAYOUT = bytes(range(8))
# Of a small CNN: matrices, biases, one tensor of a single value.
SHAPES = ((16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 128), (64,), (10, 64), (10,), (1,))
PARAMETERS, BUFFERS = sum(int(np.prod(shape)) for shape in SHAPES), 96
_BLOB, _MODEL = BlobRef(DIGEST, 9000), BlobRef(DIGEST, 70_000)
_TASK = Task("r", 1, _BLOB, _MODEL, 4, 0, 1, 32, 0.05, OptimizerSpec(), "topk:0.1/int8", 9, 60.0)

# Of a node of gossip.
NODE_VALUES = 20
GOSSIP = Membership(
    *("r", 3, (Neighbour("aa", 0.3, True, bytes(44)), Neighbour("bb", 0.2, subtree=4)), "topk:0.1/int8", 0.25),
    *(12, False, Effort(2, 1), 40),
)

BODIES: tuple[Body, ...] = (
    Hello("0.1.0", "portable", "r/1", 2, 512, 7),
    Welcome("r", 1.5, "two-agents"),
    _TASK,
    Task(
        *("r", 1, _BLOB, _MODEL, 4, 5, 0, 32, 0.05, OptimizerSpec("adamw", 0.9, True, 0.1), "mask/float16", 9, 60.0),
        *("full", LAYOUT, SharedMask(DIGEST, _BLOB, DIGEST, 5), (Difference(DIGEST, _BLOB),) * 2),
    ),
    TaskReport("r/1", "refused", 10, "portable", "memory", "too large"),
    Offer(_BLOB, "r", 1, 3, 6, DIGEST, 10, 20, 0.25, 1.5, "topk:0.1/int8", "full", 80.5),
    Need(DIGEST, (0, 1, 65535)),
    Chunk(DIGEST, 1, bytes(range(256))),
    Receipt(DIGEST, "r/1", "rejected", "norm", "too long"),
    Withdraw("r/1", "closed"),
    Unavailable(DIGEST, "gone"),
    CoordinatorState(5, True, "r", 9, 30.0, 4.5),
    DeviceState("ready"),
    Announcement(4, _MODEL),
    Later(DIGEST, 12.5),
    GOSSIP,
    Membership("r", 4, GOSSIP.neighbours[1:], "all/float16", 1.0, algorithm="relay", patience_s=9.5, begun=70),
    Effort(2, 4),
    Part(3, 2, 0, 1, 5, DIGEST, b"12345"),
    Want(3, 2, (0, 7, 63)),
    Standing(3, 6, 0.5, ("aa", "bb")),
)


def vectors(seed: int = 1) -> tuple[Vector, Vector, Vector]:
    """Parameters, buffers and what earlier updates left out."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=n).astype(np.float32) for n in (PARAMETERS, BUFFERS, PARAMETERS))  # type: ignore[return-value]


def nodes() -> tuple[Node, ...]:
    """Of either algorithm, in the middle of an exchange."""
    x = np.linspace(0, 1, NODE_VALUES, dtype=np.float32)
    held = Sums(x, {"aa": (Relayed(x, 2, 1), Relayed(x, 3, 2))}, {"aa": bytes(30)}, 2, 0.5)
    choco = Choco(x.astype(np.float64), x.astype(np.float64))
    return (
        Node("waiting", x, GOSSIP, 2, choco, x, {(3, 1): bytes(20), (3, 2): bytes(30)}, GOSSIP),
        Node("training", x, GOSSIP, 2, before=x, sums=held),
    )


def carry() -> Carry:
    values = np.ones(6, np.float32)
    memory = Memory("qg", "r", 3, 2, 0.1, values, values)
    return Carry("r", LAYOUT, ((2, 3),), values[:2], memory, Tally("r/1", 5, 2.5, 1.5), (Key("aa", 3, bytes(44)),))


def personal() -> Personal:
    weight, bias = np.ones((3, 4), np.float32), np.zeros(3, np.float32)
    origin = Origin("r", 1, 0, "ab" * 32, "full", 40, 200, Figures(10, 0.5, 0.6, 0.7, 0.4), "model-ab-1.onnx")
    return Personal(origin, Head(weight, bias), Head(weight, bias), Means(weight[0], weight[1]))


def mask(seed: int = 1) -> Mask:
    return np.random.default_rng(seed).random(PARAMETERS) < 0.2


def shared() -> Shared:
    """Of a task under a mask that asks for a report."""
    return Shared(mask(), 50)


def manifest() -> Manifest:
    """With a part of every kind."""
    weight = Tensor("weight", (4, 3), 0, "parameter", prunable=True)
    tensors = (weight, Tensor("bias", (4,), 12, "parameter"), Tensor("mean", (4,), 16, "buffer"))
    backends = {"portable": Backend({"train": "train.onnx", "eval": "eval.onnx"}, "onnxruntime>=1.17")}
    tier = Variant("tier-050", backends, keep={"g": 2}, load=Load(1000, 10, 20))
    part = Variant("last-1", backends, frozen=("weight",), frozen_buffers=("mean",))
    names = ("eval.onnx", "inference.onnx", "mask.bin", "parameters.safetensors", "reference.safetensors", "train.onnx")
    channels, plain = (Segment("g", 4),), (Segment(None, 3),)
    return Manifest(
        format=FORMAT,
        line="tiny",
        version=3,
        tensors=tensors,
        inputs=(Port("x", (3,), "float32"),),
        targets=(Port("y", (), "int64", classes=4),),
        outputs=(Port("scores", (4,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(name, 2 if name == "mask.bin" else 100, DIGEST.hex()) for name in names),
        variants=(Variant("full", backends, (Dropout("mask.0", (4,), 0.5),)), tier, part),
        inference=Inference("inference.onnx", {"weight": 0, "bias": 48, "mean": 64}),
        parity={"portable": Parity(1e-7, 1e-7, 0.0, 1e-6, 1e-5, "2.13.0")},
        reference=Reference("reference.safetensors", DIGEST.hex()),
        mask="mask.bin",
        groups=(ChannelGroup("g", 4),),
        axes={"weight": (channels, plain), "bias": (channels,), "mean": (channels,)},
    )


class KeptFile:
    """A disk that has one file, by whatever path it is asked for."""

    def __init__(self) -> None:
        self.data = b""

    def read(self, path: Path, start: int = 0, length: int = -1) -> bytes:
        return self.data

    def write(self, path: Path, data: bytes) -> None:
        self.data = data

    def rename(self, old: Path, new: Path) -> None:
        """There is one file."""

    def sync(self, *paths: Path) -> None:
        """Nothing is ever lost."""


RUN = Run({"bundle": "00", "recipe.seed": 1})


def checkpoint_file(disk: KeptFile) -> bytes:
    """A checkpoint of 20 values, 16 of them trained."""
    model, moments = np.arange(20, dtype=np.float32), np.ones(16, np.float32)
    state = TrainingState(
        done=3,
        model=model,
        optimizer=OptimizerState(3, moments, moments),
        anchor=model[:16],
        sparse=None,
        losses=(1.0, 0.5, 0.25),
        seconds=1.5,
        gradients=np.zeros(16),
    )
    checkpoint.save(Path("run.ckpt"), RUN, state, disk)  # type: ignore[arg-type]
    return disk.data
