"""The cases of docs/operators.md over sequences, of dropout, and of parts put together."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from export import TrainingSpec
from tests.export.operators import Case, Chosen, Function, labels, normal, on, tied

WORDS, LENGTH, WIDTH = 7, 4, 6


def _on_words(module: nn.Module) -> TrainingSpec:
    """Words of which the first stands for none."""
    words = labels(WORDS, LENGTH)
    with torch.no_grad():
        target = torch.randn_like(module(words))
    return TrainingSpec(module, words, target, "mse")


def _embeddings() -> list[Case]:
    forms: dict[str, Callable[[], nn.Module]] = {
        "Embedding": lambda: nn.Embedding(WORDS, 3),
        "Embedding, padding_idx": lambda: nn.Embedding(WORDS, 3, padding_idx=0),
        "EmbeddingBag, mean": lambda: nn.EmbeddingBag(WORDS, 3),
        "EmbeddingBag, sum": lambda: nn.EmbeddingBag(WORDS, 3, mode="sum"),
        "EmbeddingBag, max": lambda: nn.EmbeddingBag(WORDS, 3, mode="max"),
        "EmbeddingBag, sum, padding_idx": lambda: nn.EmbeddingBag(WORDS, 3, mode="sum", padding_idx=0),
        "EmbeddingBag, mean, padding_idx": lambda: nn.EmbeddingBag(WORDS, 3, padding_idx=0),
        "F.one_hot and Linear": lambda: Chosen(lambda m, x: m["l"](f.one_hot(x, WORDS).float()), l=nn.Linear(WORDS, 3)),
        "a table indexed by words": lambda: Chosen(lambda m, x: m["l"].weight[x], l=nn.Linear(3, WORDS, bias=False)),
    }
    return [Case("embedding", name, partial(lambda make: _on_words(make()), make)) for name, make in forms.items()]


class Attended(nn.Module):
    """Self-attention over examples-first values."""

    def __init__(self, mask: Tensor | None = None, *, causal: bool = False, padded: bool = False, **options: Any):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)
        self.mask, self.causal, self.padded = mask, causal, padded

    def forward(self, x: Tensor) -> Tensor:
        missing = x[:, :, 0] > 1.0 if self.padded else None
        if missing is not None:
            missing = torch.cat([torch.zeros_like(missing[:, :1]), missing[:, 1:]], 1)
        result: Tensor = self.attention(
            x, x, x, need_weights=False, attn_mask=self.mask, is_causal=self.causal, key_padding_mask=missing
        )[0]
        return result


def _scaled(**options: Any) -> Callable[[Tensor], Tensor]:
    def attend(x: Tensor) -> Tensor:
        heads = x.reshape(x.shape[0], LENGTH, 2, WIDTH // 2).transpose(1, 2)
        return f.scaled_dot_product_attention(heads, heads, heads, **options)

    return attend


def _attention() -> list[Case]:
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    infinite = torch.zeros(LENGTH, LENGTH).masked_fill(later, -torch.inf)
    encoder = partial(nn.TransformerEncoderLayer, WIDTH, 2, 8, batch_first=True)
    forms: dict[str, Callable[[], Any]] = {
        "MultiheadAttention": Attended,
        "MultiheadAttention, no bias": lambda: Attended(bias=False),
        "MultiheadAttention, a mask of booleans": lambda: Attended(later),
        "MultiheadAttention, a mask of -inf": lambda: Attended(infinite),
        "MultiheadAttention, causal": lambda: Attended(infinite, causal=True),
        "MultiheadAttention, key_padding_mask": lambda: Attended(padded=True),
        "MultiheadAttention, both masks": lambda: Attended(infinite, padded=True),
        "MultiheadAttention, add_bias_kv and add_zero_attn": lambda: Attended(add_bias_kv=True, add_zero_attn=True),
        "MultiheadAttention, dropout": lambda: Attended(dropout=0.3),
        "MultiheadAttention, causal, dropout": lambda: Attended(infinite, causal=True, dropout=0.3),
        "MultiheadAttention, weights too": lambda: Chosen(
            lambda m, x: torch.cat(m["a"](x, x, x), 2), a=nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        ),
        "scaled_dot_product_attention": lambda: _scaled(),
        "scaled_dot_product_attention, causal, scale": lambda: _scaled(is_causal=True, scale=0.3),
        "TransformerEncoderLayer, dropout": lambda: encoder(dropout=0.2),
        "TransformerEncoderLayer, norm_first, GELU": lambda: encoder(dropout=0.0, norm_first=True, activation="gelu"),
        "TransformerDecoderLayer": lambda: Chosen(
            lambda m, x: m["d"](x, x.flip(1)), d=nn.TransformerDecoderLayer(WIDTH, 2, 8, 0.0, batch_first=True)
        ),
    }
    return [
        Case("attention", name, partial(lambda make: on(make(), normal(LENGTH, WIDTH)), make))
        for name, make in forms.items()
    ]


def _last(layer: nn.Module, states: int = 1) -> nn.Module:
    """Everything that a recurrent layer gives, in one tensor: its results, and its last states."""

    def everything(m: nn.ModuleDict, x: Tensor) -> Tensor:
        results, last = m["r"](x)
        if not m["r"].batch_first:
            results = results.transpose(0, 1)
        parts = [results.flatten(1), *(s.transpose(0, 1).flatten(1) for s in (last if states > 1 else (last,)))]
        return torch.cat(parts, 1)

    return Chosen(everything, r=layer)


class Examined(nn.Module):
    """A recurrent layer whose values come with examples second."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = _last(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1))  # type: ignore[no-any-return]


class Stepwise(nn.Module):
    """A cell, called for every step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]


class Begun(nn.Module):
    """An LSTM that begins from states of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(WIDTH, 4, batch_first=True)
        self.h, self.c = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        h, c = self.h.expand(1, count, 4).contiguous(), self.c.expand(1, count, 4).contiguous()
        return self.layer(x, (h, c))[0]  # type: ignore[no-any-return]


def _recurrent() -> list[Case]:
    lstm, gru = partial(nn.LSTM, WIDTH, 4), partial(nn.GRU, WIDTH, 4)
    forms: dict[str, Callable[[], nn.Module]] = {
        "LSTM": lambda: _last(lstm(batch_first=True), 2),
        "LSTM, batch_first=False": lambda: Examined(lstm()),
        "LSTM, no bias": lambda: _last(lstm(bias=False, batch_first=True), 2),
        "LSTM, both directions": lambda: _last(lstm(bidirectional=True, batch_first=True), 2),
        "LSTM, 2 layers": lambda: _last(lstm(num_layers=2, batch_first=True), 2),
        "LSTM, 2 layers, both directions, dropout": lambda: _last(
            lstm(num_layers=2, bidirectional=True, dropout=0.3, batch_first=True), 2
        ),
        "LSTM, proj_size": lambda: _last(lstm(proj_size=2, batch_first=True), 2),
        "LSTM, states given": Begun,
        "LSTM, only the last step read": lambda: Chosen(lambda m, x: m["r"](x)[0][:, -1], r=lstm(batch_first=True)),
        "GRU": lambda: _last(gru(batch_first=True)),
        "GRU, no bias": lambda: _last(gru(bias=False, batch_first=True)),
        "GRU, 2 layers, both directions, dropout": lambda: _last(
            gru(num_layers=2, bidirectional=True, dropout=0.3, batch_first=True)
        ),
        "RNN, tanh": lambda: _last(nn.RNN(WIDTH, 4, batch_first=True)),
        "RNN, relu, 2 layers, both directions": lambda: _last(
            nn.RNN(WIDTH, 4, 2, "relu", batch_first=True, bidirectional=True)
        ),
        "LSTMCell": lambda: Stepwise(nn.LSTMCell(WIDTH, 4)),
        "GRUCell": lambda: Stepwise(nn.GRUCell(WIDTH, 4)),
        "RNNCell": lambda: Stepwise(nn.RNNCell(WIDTH, 4)),
    }
    return [
        Case("recurrent", name, partial(lambda make: on(make(), normal(LENGTH, WIDTH)), make))
        for name, make in forms.items()
    ]


def _dropouts() -> list[Case]:
    forms: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "Dropout": (nn.Dropout(0.4), (6,)),
        "Dropout, twice": (nn.Sequential(nn.Dropout(0.4), nn.Tanh(), nn.Dropout(0.2)), (6, 3)),
        "Dropout, everything dropped": (nn.Dropout(1.0), (6,)),
        "Dropout1d": (nn.Dropout1d(0.4), (6, 3)),
        "Dropout2d": (nn.Dropout2d(0.4), (6, 3, 3)),
        "AlphaDropout": (nn.AlphaDropout(0.4), (6,)),
        "FeatureAlphaDropout": (nn.FeatureAlphaDropout(0.4), (6, 3, 3)),
    }
    return [
        Case("dropout", name, partial(lambda layer, shape: on(layer, normal(*shape)), layer, shape))
        for name, (layer, shape) in forms.items()
    ]


def _parts() -> list[Case]:
    def shuffled(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 2, 3, 4).transpose(1, 2).flatten(1, 2)

    def put(x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 1:3] = x[:, 2:4] * 2
        y[:, ::3, 0] = x[:, ::3, 1]
        return y + x

    forms: dict[str, tuple[Any, tuple[int, ...]]] = {
        "a residual": (lambda x: x + torch.tanh(x), (6, 4)),
        "torch.cat": (lambda x: torch.cat([x, x * 2, x[:, :1]], 1), (6, 4)),
        "torch.stack": (lambda x: torch.stack([x, x * x], 2), (6, 4)),
        "slices, steps, negative places": (lambda x: x[:, 1:-1, ::2] * x[:, -1:, :2], (6, 4)),
        "chunk and split": (lambda x: x.chunk(3, 1)[1] * x.split([2, 4], 1)[0], (6, 4)),
        "unbind": (lambda x: x.unbind(1)[2] - x.unbind(1)[0], (6, 4)),
        "values put into slices": (put, (6, 4)),
        "a list of places": (lambda x: x[:, [0, 2, 2, 5]], (6, 4)),
        "two lists of places": (lambda x: x[:, [0, 2, 5], [1, 1, 3]], (6, 4)),
        "index_select": (lambda x: x.index_select(2, torch.tensor([3, 0, 0])), (6, 4)),
        "gather": (lambda x: x.gather(1, x.argsort(1)[:, :2] * 0 + 1), (6, 4)),
        "flip and roll": (lambda x: x.flip(1) * x.roll(1, 2), (6, 4)),
        "transpose, reshape, channel shuffle": (shuffled, (6, 4)),
        "repeat, expand, repeat_interleave": (
            lambda x: x.repeat(1, 2, 1) * x[:, :1].expand(-1, 12, -1) + x.repeat_interleave(2, 1),
            (6, 4),
        ),
        "F.pad, constant": (lambda x: f.pad(x, (1, 2, 0, 1), value=0.5) ** 2, (3, 6, 4)),
        "F.pad, reflect": (nn.ReflectionPad2d((1, 2, 1, 0)), (3, 6, 4)),
        "F.pad, replicate": (nn.ReplicationPad2d((1, 2, 1, 0)), (3, 6, 4)),
        "PixelShuffle, PixelUnshuffle": (nn.Sequential(nn.PixelShuffle(2), nn.Tanh(), nn.PixelUnshuffle(2)), (8, 3, 2)),
        "ChannelShuffle": (nn.ChannelShuffle(2), (6, 3, 2)),
        "interpolate, nearest": (nn.Upsample(scale_factor=2), (3, 4, 5)),
        "interpolate, nearest to any size": (nn.Upsample(size=(7, 3)), (3, 4, 5)),
        "interpolate, bilinear": (nn.Upsample(scale_factor=1.5, mode="bilinear"), (3, 4, 6)),
        "interpolate, bilinear, align_corners": (
            nn.Upsample(size=(7, 3), mode="bilinear", align_corners=True),
            (3, 4, 5),
        ),
        "interpolate, bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), (3, 4, 5)),
        "interpolate, linear": (nn.Upsample(size=8, mode="linear"), (3, 5)),
        "interpolate, area": (lambda x: f.interpolate(x, size=(2, 3), mode="area"), (3, 4, 6)),
        "sums, means, products": (lambda x: x.sum(1) * x.mean(1) + x.prod(1), (3, 4)),
        "var, std, norm": (lambda x: x.var(1) + x.std(1, unbiased=False) + x.norm(dim=1), (6, 4)),
        "logsumexp, cumsum": (lambda x: x.logsumexp(1, keepdim=True) + x.cumsum(1), (6, 4)),
        "exp, log, sqrt, rsqrt, pow": (
            lambda x: (x.exp() + 1).log() + (x * x + 1).sqrt() + (x.abs() + 1).rsqrt() + (x.abs() + 0.1) ** 1.7,
            (6, 4),
        ),
        "sin, cos, tan, atan, erf": (lambda x: x.sin() + x.cos() + (x / 9).tan() + x.atan() + x.erf(), (6, 4)),
        "abs, sign, round, clamp": (lambda x: x.abs() + x.sign() * x + x.round() + x.clamp(-1, 0.5), (6, 4)),
        "where, maximum, minimum": (
            lambda x: torch.where(x > 0, x * 2, x * x) + torch.maximum(x, x.flip(1)) + torch.minimum(x, x[:, :1]),
            (6, 4),
        ),
        "masked_fill": (lambda x: x.masked_fill(x > 0.5, -1.0), (6, 4)),
        "lerp, addcmul, outer division": (lambda x: torch.lerp(x, x * x, 0.3) + x[:, :, None, 0] / (x * x + 1), (4, 4)),
        "tril, triu, diagonal": (lambda x: x.tril() @ x.triu() + x.diagonal(dim1=1, dim2=2)[:, None], (4, 4)),
        "sorted values, topk": (lambda x: x.topk(3, 1).values.sum(2) + x.sort(1).values[:, :3, 0], (6, 4)),
        "cosine similarity, cdist": (
            lambda x: f.cosine_similarity(x[:, :3], x[:, 3:], 2) + torch.cdist(x, x)[:, 0, 1:4],
            (6, 4),
        ),
    }
    ties = ("abs, sign, round, clamp", "where, maximum, minimum")
    return [
        Case("parts", name, partial(_parted, function, shape, name in ties))
        for name, (function, shape) in forms.items()
    ]


def _parted(function: Any, shape: tuple[int, ...], ties: bool) -> TrainingSpec:
    layer = function if isinstance(function, nn.Module) else Function(function)
    return on(layer, tied(*shape) if ties else normal(*shape))


SEQUENCES = (*_embeddings(), *_attention(), *_recurrent(), *_dropouts(), *_parts())
