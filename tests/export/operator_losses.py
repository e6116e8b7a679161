"""The cases of docs/operators.md for losses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from export import TrainingSpec
from tests.export.operators import EXAMPLES, Case, labels, normal, tied, under

CLASSES = 5


def _ignored(*shape: int) -> Tensor:
    target = labels(CLASSES, *shape)
    target[1:3] = -100
    return target


def _weights() -> Tensor:
    return torch.rand(CLASSES) + 0.5


def _shares(*shape: int) -> Tensor:
    return torch.softmax(normal(CLASSES, *shape), 1)


def _scores(loss: object, target: Tensor, *shape: int, scale: float = 1.0) -> TrainingSpec:
    return under(loss, scale * normal(CLASSES, *shape), target)


def _classes() -> dict[str, Callable[[], TrainingSpec]]:
    entropy = nn.CrossEntropyLoss
    return {
        "cross_entropy": lambda: _scores("cross_entropy", labels(CLASSES)),
        "CrossEntropyLoss, class weights": lambda: _scores(entropy(_weights()), labels(CLASSES)),
        "CrossEntropyLoss, label_smoothing": lambda: _scores(entropy(label_smoothing=0.1), labels(CLASSES)),
        "CrossEntropyLoss, weights, label_smoothing, ignore_index": lambda: _scores(
            entropy(_weights(), label_smoothing=0.1), _ignored()
        ),
        "CrossEntropyLoss, ignore_index": lambda: _scores(entropy(ignore_index=2), labels(CLASSES)),
        "CrossEntropyLoss, reduction='sum'": lambda: _scores(entropy(reduction="sum"), labels(CLASSES)),
        "CrossEntropyLoss of pixels": lambda: _scores(entropy(), labels(CLASSES, 3, 2), 3, 2),
        "CrossEntropyLoss of pixels, ignore_index, weights": lambda: _scores(entropy(_weights()), _ignored(3, 2), 3, 2),
        "CrossEntropyLoss of pixels, label_smoothing": lambda: _scores(
            entropy(label_smoothing=0.2), labels(CLASSES, 3, 2), 3, 2
        ),
        "CrossEntropyLoss, soft labels": lambda: _scores(entropy(), _shares()),
        "CrossEntropyLoss, soft labels, weights, label_smoothing": lambda: _scores(
            entropy(_weights(), label_smoothing=0.1), _shares()
        ),
        "CrossEntropyLoss of scores up to 1000": lambda: under(
            "cross_entropy", 500 * tied(CLASSES), torch.arange(EXAMPLES)
        ),
        "NLLLoss": lambda: _scores(lambda x, t: f.nll_loss(x.log_softmax(1), t), labels(CLASSES)),
        "NLLLoss, weights, ignore_index": lambda: _scores(
            _Nll(nn.NLLLoss(_weights(), ignore_index=1)), labels(CLASSES)
        ),
        "NLLLoss of pixels": lambda: _scores(_Nll(nn.NLLLoss()), labels(CLASSES, 3, 2), 3, 2),
        "MultiMarginLoss": lambda: _scores(nn.MultiMarginLoss(), labels(CLASSES)),
        "MultiLabelSoftMarginLoss": lambda: _scores(nn.MultiLabelSoftMarginLoss(), (normal(CLASSES) > 0).float()),
        "KLDivLoss": lambda: _scores(_Nll(nn.KLDivLoss(reduction="batchmean")), _shares()),
        "KLDivLoss, log_target": lambda: _scores(
            _Nll(nn.KLDivLoss(reduction="batchmean", log_target=True)), _shares().log()
        ),
        "focal loss, one's own": lambda: _scores(_focal, labels(CLASSES)),
    }


class _Nll(nn.Module):
    """A loss of logarithms of shares."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(x.log_softmax(1), target)  # type: ignore[no-any-return]


def _focal(scores: Tensor, target: Tensor) -> Tensor:
    losses = f.cross_entropy(scores, target, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def _numbers() -> dict[str, Callable[[], TrainingSpec]]:
    def numbers(loss: object) -> TrainingSpec:
        return under(loss, normal(3), tied(3))

    def chances(loss: object, scale: float = 1.0) -> TrainingSpec:
        return under(loss, scale * normal(3), (normal(3) > 0).float())

    def near(loss: object) -> TrainingSpec:
        # Whole numbers on both sides: at the kinks, too.
        return under(loss, tied(3), tied(3))

    bce = nn.BCEWithLogitsLoss
    return {
        "mse": lambda: numbers("mse"),
        "MSELoss, reduction='sum'": lambda: numbers(nn.MSELoss(reduction="sum")),
        "l1": lambda: numbers("l1"),
        "l1 at its kink": lambda: near("l1"),
        "HuberLoss": lambda: numbers(nn.HuberLoss(delta=0.7)),
        "HuberLoss at its kinks": lambda: near(nn.HuberLoss()),
        "SmoothL1Loss": lambda: numbers(nn.SmoothL1Loss(beta=0.5)),
        "SmoothL1Loss at its kinks": lambda: near(nn.SmoothL1Loss()),
        "binary_cross_entropy_with_logits": lambda: chances("binary_cross_entropy_with_logits"),
        "BCEWithLogitsLoss, pos_weight": lambda: chances(bce(pos_weight=torch.tensor([1.0, 2.0, 0.5]))),
        "BCEWithLogitsLoss, weight": lambda: chances(bce(torch.tensor([1.0, 2.0, 0.5]))),
        "BCEWithLogitsLoss of scores up to 1000": lambda: chances("binary_cross_entropy_with_logits", 500),
        "BCELoss": lambda: chances(_Squashed(nn.BCELoss())),
        "SoftMarginLoss": lambda: under(nn.SoftMarginLoss(), normal(3), torch.sign(normal(3))),
        "a Gaussian likelihood of one's own": lambda: under(_gaussian, normal(4), normal(2)),
        "PoissonNLLLoss": lambda: under(nn.PoissonNLLLoss(), normal(3), tied(3).abs()),
        "cosine_embedding_loss": lambda: under(_cosine, normal(3), normal(3)),
        "TripletMarginLoss": lambda: under(nn.TripletMarginLoss(), normal(3), normal(3), normal(3)),
        "a function of one's own": lambda: numbers(lambda x, t: torch.log(torch.cosh(x - t)).mean()),
    }


class _Squashed(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.loss(torch.sigmoid(x), target)  # type: ignore[no-any-return]


def _gaussian(x: Tensor, target: Tensor) -> Tensor:
    mean, deviation = x.chunk(2, 1)
    deviation = f.softplus(deviation)
    return (torch.log(deviation) + ((target - mean) / deviation).square() / 2).mean()


def _cosine(x: Tensor, target: Tensor) -> Tensor:
    return f.cosine_embedding_loss(x, target, torch.ones(x.shape[0]), 0.1)


STEPS, LONGEST = 7, 3


class _Ctc(nn.Module):
    """nn.CTCLoss of scores with the examples first."""

    def __init__(self, **options: bool | str | int) -> None:
        super().__init__()
        self.loss = nn.CTCLoss(**options)  # type: ignore[arg-type]

    def forward(self, scores: Tensor, labels: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
        return self.loss(scores.log_softmax(2).transpose(0, 1), labels, steps, lengths)  # type: ignore[no-any-return]


def _whole_length(scores: Tensor, target: Tensor) -> Tensor:
    """Every example of all steps and all labels."""
    batch = scores.shape[0]
    steps, lengths = torch.full((batch,), STEPS), torch.full((batch,), LONGEST)
    return f.ctc_loss(scores.log_softmax(2).transpose(0, 1), target, steps, lengths)


def _sequences() -> dict[str, Callable[[], TrainingSpec]]:
    def spoken(loss: object, repeated: bool = False, short: bool = False) -> TrainingSpec:
        target = torch.randint(1, CLASSES, (EXAMPLES, LONGEST))
        if repeated:
            target[:2] = target[:2, :1]
        steps, lengths = torch.tensor([7, 6, 7, 5]), torch.tensor([3, 2, 1, 3])
        if short:
            steps[1], lengths[1], target[1] = 2, 3, 1
        return under(loss, normal(STEPS, CLASSES), target, steps, lengths)

    return {
        "CTCLoss": lambda: spoken(_Ctc()),
        "CTCLoss, repeated labels, sum": lambda: spoken(_Ctc(reduction="sum"), repeated=True),
        "CTCLoss, zero_infinity, an impossible example": lambda: spoken(_Ctc(zero_infinity=True), short=True),
        "CTCLoss, blank=4": lambda: under(
            _Ctc(blank=CLASSES - 1),
            normal(STEPS, CLASSES),
            torch.randint(0, CLASSES - 1, (EXAMPLES, LONGEST)),
            torch.full((EXAMPLES,), STEPS),
            torch.tensor([3, 0, 1, 2]),
        ),
        "F.ctc_loss, all of one length": lambda: under(
            _whole_length, normal(STEPS, CLASSES), torch.randint(1, CLASSES, (EXAMPLES, LONGEST))
        ),
    }


def _cases(group: str, forms: dict[str, Callable[[], TrainingSpec]]) -> list[Case]:
    return [Case(group, name, make) for name, make in forms.items()]


LOSSES = (
    *_cases("loss over classes", _classes()),
    *_cases("loss over numbers", _numbers()),
    *_cases("loss over sequences", _sequences()),
)
