"""The optimisers step exactly as torch's do."""

from typing import Any

import numpy as np
import pytest

from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from tests.runtimes.test_optimizers import STEPS, run, vector

torch = pytest.importorskip("torch")


def run_torch(optimizer: type[Any], **settings: Any) -> Vector:
    parameter = torch.nn.Parameter(torch.from_numpy(vector(0)))
    opt = optimizer([parameter], lr=0.05, **settings)
    for i in range(STEPS):
        parameter.grad = torch.from_numpy(vector(i + 1))
        opt.step()
    result: Vector = parameter.detach().numpy()
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_sgd_takes_the_steps_that_torch_takes(settings: dict[str, Any]) -> None:
    np.testing.assert_allclose(
        run(OptimizerSettings(**settings)), run_torch(torch.optim.SGD, **settings), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize(
    ("beta1", "beta2", "epsilon", "weight_decay"),
    [(0.9, 0.999, 1e-8, 0.0), (0.9, 0.999, 1e-8, 0.1), (0.5, 0.9, 1e-3, 0.01), (0.0, 0.0, 1e-8, 0.0)],
)
def test_adamw_takes_the_steps_that_torch_takes(
    beta1: float, beta2: float, epsilon: float, weight_decay: float
) -> None:
    ours = run(OptimizerSettings("adamw", weight_decay=weight_decay, beta1=beta1, beta2=beta2, epsilon=epsilon))
    theirs = run_torch(torch.optim.AdamW, betas=(beta1, beta2), eps=epsilon, weight_decay=weight_decay)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("proximal", [0.01, 1.0])
def test_sgd_with_a_proximal_term_is_torch_on_the_penalised_loss(proximal: float) -> None:
    anchor = torch.from_numpy(vector(0))
    parameter = torch.nn.Parameter(anchor.clone())
    opt = torch.optim.SGD([parameter], lr=0.05, momentum=0.9)
    for i in range(STEPS):
        opt.zero_grad()
        loss = (parameter * torch.from_numpy(vector(i + 1))).sum() + proximal / 2 * ((parameter - anchor) ** 2).sum()
        torch.autograd.backward(loss)
        opt.step()
    ours = run(OptimizerSettings(momentum=0.9, proximal=proximal))
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=2e-6, atol=4e-6)
