"""Removing channels: the asked share of each group, the important ones kept, and refusals by name."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import spec_of
from sparse.channels import channel_scores, channel_structure, remove_channels

EXAMPLE = (torch.randn(2, 3, 8, 8),)


def small() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)]
    return nn.Sequential(*layers)


def test_half_of_the_channels_are_a_quarter_of_the_inner_weights() -> None:
    spec = spec_of("resnet8_bn", 2)
    smaller = remove_channels(spec.module, spec.input_tensors, 0.5)
    shapes = {name: tuple(p.shape) for name, p in smaller.named_parameters()}
    assert shapes["3.body.0.weight"] == (8, 8, 3, 3)
    assert shapes["8.weight"] == (10, 32)
    assert smaller(spec.inputs).shape == (2, 10)
    assert spec.module(spec.inputs).shape == (2, 10)


def test_the_strongest_channels_stay_in_their_order_and_ties_go_to_the_first() -> None:
    module = small()
    with torch.no_grad():
        module.get_parameter("0.weight")[:] = torch.tensor([1.0, 5, 2, 5, 1, 4, 1, 1]).reshape(8, 1, 1, 1)
        module.get_parameter("4.weight")[:] = 1.0
    kept = remove_channels(module, EXAMPLE, 0.5).get_parameter("0.weight")[:, 0, 0, 0]
    assert kept.tolist() == [5, 2, 5, 4]
    kept = remove_channels(module, EXAMPLE, 0.625).get_parameter("0.weight")[:, 0, 0, 0]
    assert kept.tolist() == [1, 5, 2, 5, 4]


def test_gradients_and_chance_score_too() -> None:
    module = small()
    groups, structure = channel_structure(module, EXAMPLE)
    with pytest.raises(ValueError, match=r"0\.weight has no gradient; call backward"):
        remove_channels(module, EXAMPLE, 0.5, "gradient")
    module(*EXAMPLE)[:, 0].sum().backward()
    for name in ("0.weight", "4.weight"):
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        gradient[2 if name == "0.weight" else slice(None)] = 0.0
    assert channel_scores(module, groups, structure, "gradient")["0"].argmin() == 2
    first, again, other = (channel_scores(module, groups, structure, "random", seed)["0"] for seed in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).any()
    with pytest.raises(ValueError, match=r"score: 'l0' is unknown; use magnitude, gradient, random"):
        remove_channels(module, EXAMPLE, 0.5, "l0")  # type: ignore[arg-type]


def test_what_is_left_whole_is_named_by_patterns_that_match() -> None:
    spec = spec_of("resnet8_bn", 2)
    smaller = remove_channels(spec.module, spec.input_tensors, 0.5, leave=("3.*", "0"))
    assert smaller.get_parameter("3.body.0.weight").shape == (16, 16, 3, 3)
    assert smaller.get_parameter("5.body.0.weight").shape == (32, 16, 3, 3)
    with pytest.raises(ValueError, match=r"leave: 'head\*' matches no group of channels; there are 0, 3\.body\.0"):
        remove_channels(spec.module, spec.input_tensors, 0.5, leave=("0", "head*"))


class Shuffled(nn.Module):
    """Channels change places between two layers, which a trace by layers does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).flip(1)).mean((2, 3))  # type: ignore[no-any-return]


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Linear(8 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).view(-1, 8 * 64))  # type: ignore[no-any-return]


def test_channels_whose_way_is_not_understood_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"channels of 'first' in forward was not understood.*leave='first'"):
        remove_channels(Shuffled(), EXAMPLE, 0.5)
    with pytest.raises(ValueError, match=r"forward cannot do with fewer channels.*x\.flatten\(1\)"):
        remove_channels(Sized(), EXAMPLE, 0.5)
    with pytest.raises(ValueError, match="no channels that can be removed"):
        remove_channels(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), EXAMPLE, 0.5)
