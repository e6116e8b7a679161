"""Each rewriting for the training runtime is the same function with the same slopes as torch's own operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as f

from export import losses, windows
from export.decompositions import TABLE

ATEN = torch.ops.aten
# Far out, where a form of two branches would be infinity times nothing.
VALUES = torch.cat([torch.linspace(-6, 6, 48), torch.tensor([-1e4, -200.0, -90.0, 25.0, 90.0, 200.0, 1e4, 1e-3])])

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "elu": (lambda x: f.elu(x, 0.7), lambda x: TABLE[ATEN.elu.default](x, 0.7)),
    "celu": (lambda x: f.celu(x, 1.3), lambda x: TABLE[ATEN.celu.default](x, 1.3)),
    "selu": (f.selu, TABLE[ATEN.selu.default]),
    "softplus": (lambda x: f.softplus(x, 2.0), lambda x: TABLE[ATEN.softplus.default](x, 2.0)),
    "mish": (f.mish, TABLE[ATEN.mish.default]),
    "hardsigmoid": (f.hardsigmoid, TABLE[ATEN.hardsigmoid.default]),
    "hardswish": (f.hardswish, TABLE[ATEN.hardswish.default]),
    "prelu": (
        lambda x: f.prelu(x.reshape(8, 7), torch.linspace(0, 1, 7)),
        lambda x: TABLE[ATEN.prelu.default](x.reshape(8, 7), torch.linspace(0, 1, 7)),
    ),
}


def agree(
    want: Callable[..., Tensor], got: Callable[..., Tensor], *arguments: Tensor, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Values and slopes by every argument that has one, for the same random direction."""
    results = []
    for function in (want, got):
        given = [a.clone().requires_grad_() if a.is_floating_point() else a for a in arguments]
        value = function(*given)
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        leaves = [a for a in given if a.is_floating_point()]
        results.append([value, *torch.autograd.grad((value * direction).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.isfinite(a).all()
        np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), rtol=rtol, atol=atol)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_the_same_also_far_from_zero(name: str) -> None:
    want, got = ACTIVATIONS[name]
    agree(want, got, VALUES)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 4, 5)])
def test_group_norm_is_the_same(shape: tuple[int, ...]) -> None:
    got = TABLE[ATEN.group_norm.default]
    agree(lambda x, w, b: f.group_norm(x, 3, w, b), lambda x, w, b: got(x, 3, w, b), some(*shape), some(6), some(6))


def test_instance_norm_is_the_same() -> None:
    got = TABLE[ATEN.instance_norm.default]
    agree(
        lambda x, w, b: f.instance_norm(x, weight=w, bias=b),
        lambda x, w, b: got(x, w, b, None, None, True, 0.1, 1e-5, True),
        some(3, 4, 5, 6),
        some(4),
        some(4),
    )


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_a_batch_norm_at_rest_is_the_same(shape: tuple[int, ...]) -> None:
    got = TABLE[ATEN._native_batch_norm_legit_no_training.default]
    mean, var = some(4, seed=2), some(4, seed=3).square() + 0.1
    agree(
        lambda x, w, b: f.batch_norm(x, mean, var, w, b),
        lambda x, w, b: got(x, w, b, mean, var, 0.1, 1e-5)[0],
        some(*shape),
        some(4),
        some(4),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_is_the_same(causal: bool, mask: str) -> None:
    if causal and mask != "none":
        return
    given = {"none": None, "bool": torch.ones(4, 5).tril(1).bool(), "float": some(4, 5, seed=9)}[mask]
    query, key, value = some(2, 3, 4, 6), some(2, 3, 5, 6, seed=1), some(2, 3, 5, 6, seed=2)
    got = TABLE[ATEN.scaled_dot_product_attention.default]
    agree(
        lambda q, k, v: f.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=causal),
        lambda q, k, v: got(q, k, v, given, 0.0, causal),
        query,
        key,
        value,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy_is_the_same_with_ignored_labels(weighted: bool, smoothing: float, reduction: str) -> None:
    target = torch.tensor([[0, 3, -100], [2, 1, 1]])
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else None
    code = ["none", "mean", "sum"].index(reduction)
    agree(
        lambda x: f.cross_entropy(x, target, weight, reduction=reduction, label_smoothing=smoothing),
        lambda x: losses.cross_entropy(x, target, weight, code, -100, smoothing),
        some(2, 4, 3),
    )
    agree(
        lambda x: f.nll_loss(x, target, weight, reduction=reduction),
        lambda x: losses.nll(x, target, weight, code, -100),
        some(2, 4, 3),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_of_shares_is_the_same(smoothing: float) -> None:
    shares = some(5, 4).softmax(1)
    agree(
        lambda x: f.cross_entropy(x, shares, label_smoothing=smoothing),
        lambda x: losses.cross_entropy(x, shares, label_smoothing=smoothing),
        some(5, 4, seed=1),
    )


@pytest.mark.parametrize("dims", [(1,), (2,), (-1, 1), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_the_largest_and_least_along_axes_are_the_same(dims: tuple[int, ...], keepdim: bool) -> None:
    x = some(3, 4, 5, 6)
    agree(lambda x: x.amax(dims, keepdim), lambda x: windows.amax(x, dims, keepdim), x)
    agree(lambda x: x.amin(dims, keepdim), lambda x: windows.amin(x, dims, keepdim), x)
    if len(dims) == 1:
        values, places = windows.max_dim(x, dims[0], keepdim)
        assert torch.equal(values, x.max(dims[0], keepdim).values)
        assert torch.equal(places, x.max(dims[0], keepdim).indices)


def test_adaptive_max_pools_of_even_windows_are_the_same() -> None:
    agree(
        lambda x: f.adaptive_max_pool2d(x, (2, 3)), lambda x: windows.adaptive_max_pool(x, (2, 3))[0], some(2, 3, 4, 6)
    )
    agree(lambda x: f.adaptive_max_pool1d(x, 1), lambda x: windows.adaptive_max_pool(x, (1,))[0], some(2, 3, 7))
    assert windows.adaptive_max_pool(some(2, 3, 5, 6), (2, 3)) is NotImplemented


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil", "include"),
    [
        (2, 2, 0, True, True),
        (3, 2, 1, False, False),
        (3, 2, 1, True, False),
        (3, 2, 1, True, True),
        (3, 3, 1, True, True),
    ],
)
def test_average_pools_of_uneven_windows_are_the_same(
    size: int, kernel: int, stride: int, padding: int, ceil: bool, include: bool
) -> None:
    agree(
        lambda x: f.avg_pool2d(x, kernel, stride, padding, ceil, include),
        lambda x: windows.avg_pool2d(x, [kernel], [stride], [padding], ceil, include),
        some(2, 3, size, 7),
    )


def test_upsampling_is_the_same() -> None:
    x = some(2, 3, 4, 5)
    agree(lambda x: f.interpolate(x, scale_factor=2), lambda x: windows.upsample_nearest(x, None, [2.0, 2.0]), x)
    agree(lambda x: f.interpolate(x, size=(8, 15)), lambda x: windows.upsample_nearest(x, [8, 15], None), x)
    assert windows.upsample_nearest(x, [6, 7], None) is NotImplemented
    for corners in (False, True):
        agree(
            lambda x, c=corners: f.interpolate(x, size=(7, 3), mode="bilinear", align_corners=c),
            lambda x, c=corners: windows.upsample_linear(x, [7, 3], c, None),
            x,
        )
    agree(
        lambda x: f.interpolate(x, scale_factor=1.5, mode="linear"),
        lambda x: windows.upsample_linear(x, None, False, [1.5]),
        some(2, 3, 5),
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra", "groups", "dilation"),
    [
        ((2, 2), (2, 2), (0, 0), (0, 0), 1, (1, 1)),
        ((3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
        ((3, 4), (2, 3), (0, 2), (1, 0), 2, (2, 1)),
        ((3, 3), (1, 1), (1, 1), (0, 0), 4, (1, 1)),
        ((1, 2), (3, 2), (2, 3), (0, 0), 1, (1, 1)),
        ((3, 3), (1, 2), (0, 0), (1, 0), 1, (2, 1)),
    ],
)
def test_transposed_convolutions_are_the_same(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    groups: int,
    dilation: tuple[int, int],
) -> None:
    settings = (stride, padding, extra, groups, dilation)
    agree(
        lambda x, w, b: f.conv_transpose2d(x, w, b, *settings),
        lambda x, w, b: windows.conv_transpose(x, w, b, *settings),
        some(2, 4, 5, 6),
        some(4, 4 // groups * 2, *kernel) if groups != 4 else some(4, 1, *kernel),
        some(4 // groups * 2 * groups) if groups != 4 else some(4),
        atol=1e-5,
    )


def test_pixels_shuffle_and_splits_are_the_same() -> None:
    agree(lambda x: f.pixel_shuffle(x, 3), lambda x: windows.pixel_shuffle(x, 3), some(2, 18, 2, 3))
    x = some(3, 7)
    for want, got in (
        (torch.split(x, 3, 1), windows.split(x, 3, 1)),
        (torch.split(x, [2, 5], 1), windows.split_with_sizes(x, [2, 5], 1)),
        (x.chunk(3, 1), windows.chunk(x, 3, 1)),
    ):
        assert [t.tolist() for t in got] == [t.tolist() for t in want]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_cells_are_the_same(cell: str) -> None:
    gates, memory = (4, some(3, 5, seed=2)) if cell == "lstm" else (3, None)
    operator = getattr(ATEN, f"{cell}_cell").default

    def step(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def state_after(x: Tensor, hidden: Tensor, *weights: Tensor) -> Tensor:
            if memory is None:
                return function(x, hidden, *weights)  # type: ignore[no-any-return]
            return torch.cat(function(x, (hidden, memory), *weights), 1)

        return state_after

    weights = [some(gates * 5, 4), some(gates * 5, 5), some(gates * 5, seed=3), some(gates * 5, seed=4)]
    agree(step(operator), step(TABLE[operator]), some(3, 4), some(3, 5, seed=1), *weights)


def test_the_sign_is_the_same() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    assert torch.equal(TABLE[ATEN.sign.default](x), x.sign())
