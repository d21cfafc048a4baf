"""Networks in plain torch that no library of models has: recurrent, generative, segmentation, points and graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.entry import Built, Entry, image, tokens


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    """Embedding, a recurrent net, a head on the last step."""

    def __init__(self, cell: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(90, 16)
        self.cell = cell(16, 24, batch_first=True, **options)
        self.head = nn.Linear(48 if options.get("bidirectional") else 24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        steps, _ = self.cell(self.embed(ids))
        return self.head(steps[:, -1])


class Unrolled(nn.Module):
    """A recurrent cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        for step in range(4):
            state = self.cell(x[:, step], state)
        return self.head(state)


def _twice(width_in: int, width: int) -> nn.Sequential:
    def unit(width_in: int) -> list[nn.Module]:
        return [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(*unit(width_in), *unit(width))


class UNet(nn.Module):
    """Three scales with skips; the way up is a transposed convolution or an interpolation."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _twice(3, 16), _twice(16, 32), _twice(32, 64)
        if transposed:
            self.rise2, self.rise1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        else:
            self.rise2 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(64, 32, 1))
            self.rise1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(32, 16, 1))
        self.up2, self.up1, self.head = _twice(64, 32), _twice(32, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.bottom(F.max_pool2d(two, 2))
        two = self.up2(torch.cat([self.rise2(three), two], 1))
        return self.head(self.up1(torch.cat([self.rise1(two), one], 1)))


class MLPMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(32),
                    nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)),
                    nn.LayerNorm(32),
                    nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)),
                ]
            )
            for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for norm_a, tokens_mlp, norm_b, channels_mlp in self.blocks:
            x = x + tokens_mlp(norm_a(x).transpose(1, 2)).transpose(1, 2)
            x = x + channels_mlp(norm_b(x))
        return self.head(x.mean(1))


class Generator(nn.Module):
    """DCGAN's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ConvTranspose2d(16, 64, 4, 1, 0, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z[:, :, None, None])


class Autoencoder(nn.Module):
    """A variational autoencoder; the noise is an input, so that it can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32 * 49, 8), nn.Linear(32 * 49, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 784))

    def forward(self, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x).flatten(1)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        z = mean + epsilon * torch.exp(0.5 * log_variance)
        return torch.sigmoid(self.decoder(z)).view_as(x), mean, log_variance


class AtrousPyramid(nn.Module):
    """Dilated branches side by side and a pooled one, as in DeepLab."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _twice(3, 24)
        self.branches = nn.ModuleList(nn.Conv2d(24, 12, 3, padding=rate, dilation=rate) for rate in (1, 2, 4))
        self.pooled, self.merge, self.head = nn.Conv2d(24, 12, 1), nn.Conv2d(48, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = F.interpolate(self.pooled(F.adaptive_avg_pool2d(x, 1)), x.shape[-2:], mode="bilinear")
        x = torch.cat([*(branch(x) for branch in self.branches), pooled], 1)
        return F.interpolate(self.head(F.relu(self.merge(F.relu(x)))), scale_factor=2.0, mode="bilinear")


class PointNet(nn.Module):
    """A shared MLP over points with a learned 3x3 transform and a maximum over the set."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.matrix = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 9))
        self.features = nn.Sequential(
            nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64)
        )
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, points: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(points).amax(2)).view(-1, 3, 3)
        return self.head(self.features(torch.bmm(matrix, points)).amax(2))


class DenseGraphNet(nn.Module):
    """Graph convolutions with a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(adjacency @ self.one(x))
        return self.head(F.relu(adjacency @ self.two(x)).mean(1))


class MessageGraphNet(nn.Module):
    """Messages along a list of edges, summed at their targets by ``index_add``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message, self.update = nn.Linear(8, 24), nn.Linear(48, 32), nn.Linear(56, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        messages = F.relu(self.message(torch.cat([x[sources], x[targets]], 1)))
        gathered = torch.zeros(x.shape[0], 32, dtype=x.dtype).index_add(0, targets, messages)
        return self.head(F.relu(self.update(torch.cat([x, gathered], 1))))


class Attention(nn.Module):
    """``nn.TransformerEncoder`` or decoder as it stands."""

    def __init__(self, *, decoder: bool) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True) if decoder else None
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encoder(x)
        return self.head(encoded if self.decoder is None else self.decoder(x[:, :4], encoded))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(1, 16, 1), nn.Conv1d(16, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(16, 24, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(16, 24, 2, dilation=2**i) for i in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(24, 16, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = total = self.stem(x)
        for i in range(3):
            padded = F.pad(x, (2**i, 0))
            skip = self.skips[i](torch.tanh(self.filters[i](padded)) * torch.sigmoid(self.gates[i](padded)))
            x, total = x + skip, total + skip
        return self.head(F.relu(total))


class Diffusion(nn.Module):
    """A denoiser: group norm, time embedding added to features, attention at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.stem, self.norm, self.conv = (
            nn.Conv2d(3, 32, 3, padding=1),
            nn.GroupNorm(8, 32),
            nn.Conv2d(32, 32, 3, padding=1),
        )
        self.qkv, self.out, self.head = nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.silu(self.norm(x))) + self.time(t)[:, :, None, None]
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(n, 3, 4, c // 4, h * w).transpose(3, 4).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, c, h, w)
        return self.head(x + self.out(attended))


def _edges() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (
        noise(10, 8),
        torch.randint(0, 10, (20,), generator=generator),
        torch.randint(0, 10, (20,), generator=generator),
    )


_NETWORKS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "lstm": ("other", partial(Recurrent, nn.LSTM), lambda: (tokens(),)),
    "lstm-2-bidirectional": (
        "other",
        partial(Recurrent, nn.LSTM, num_layers=2, bidirectional=True),
        lambda: (tokens(),),
    ),
    "gru": ("other", partial(Recurrent, nn.GRU), lambda: (tokens(),)),
    "rnn": ("other", partial(Recurrent, nn.RNN), lambda: (tokens(),)),
    "gru-cell": ("other", Unrolled, lambda: (noise(2, 4, 8),)),
    "unet-transposed": ("conv", partial(UNet, transposed=True), lambda: (image(32),)),
    "unet-interpolated": ("conv", partial(UNet, transposed=False), lambda: (image(32),)),
    "mlp-mixer": ("transformer", MLPMixer, lambda: (image(32),)),
    "dcgan-generator": ("conv", Generator, lambda: (noise(2, 16),)),
    "variational-autoencoder": ("conv", Autoencoder, lambda: (image(28, channels=1), noise(2, 8))),
    "atrous-pyramid": ("conv", AtrousPyramid, lambda: (image(32),)),
    "pointnet": ("conv", PointNet, lambda: (noise(2, 3, 20),)),
    "dense-graph-net": ("other", DenseGraphNet, lambda: (noise(2, 10, 8), torch.softmax(noise(2, 10, 10), -1))),
    "message-graph-net": ("other", MessageGraphNet, _edges),
    "transformer-encoder": ("transformer", partial(Attention, decoder=False), lambda: (noise(2, 6, 32),)),
    "transformer-decoder": ("transformer", partial(Attention, decoder=True), lambda: (noise(2, 6, 32),)),
    "wavenet": ("conv", WaveNet, lambda: (noise(2, 1, 40),)),
    "diffusion-unet": ("conv", Diffusion, lambda: (image(16), noise(2, 16))),
}


def _build(make: Callable[[], nn.Module], inputs: Callable[[], tuple[Tensor, ...]]) -> Built:
    return make(), inputs(), {}


def plain_entries() -> list[Entry]:
    return [
        Entry(
            f"plain/{name}",
            kind,
            partial(_build, make, inputs),
            dynamic=None if name == "message-graph-net" else "batch",
        )
        for name, (kind, make, inputs) in _NETWORKS.items()
    ]
