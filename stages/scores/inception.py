"""The Inception network that published FIDs use: Google's of December 2015, in torch.

It differs from torchvision's and timm's Inception v3: mean pooling ignores the padding, the last
block uses max pooling, and pictures are resized as in TensorFlow 1. Layers are named as in
pytorch-fid and torch-fidelity, so their weights load. B pictures, C channels, H and W sides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 2048
_INPUT_SIZE = 299


class _Layer(NamedTuple):
    """A convolution with batch norm and ReLU. Stride 1 keeps the size, stride 2 does not pad."""

    name: str
    channels: int
    height: int
    width: int
    stride: int = 1


_Step = str | _Layer | tuple[_Layer, _Layer]
"""A pool, a layer, or two parallel layers whose outputs are concatenated."""

_POOLS = {
    "mean": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "maximum": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "halve": lambda x: F.max_pool2d(x, 3, stride=2),
}


class InceptionV3(nn.Module):
    """Maps uint8 pictures (B, 3, H, W) of any size to features (B, 2048): the last average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, _Layer("", 32, 3, 3, stride=2))
        self.Conv2d_2a_3x3 = _Convolution(32, _Layer("", 32, 3, 3), padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, _Layer("", 64, 3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, _Layer("", 80, 1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, _Layer("", 192, 3, 3), padded=False)
        self.Mixed_5b = _block_a(192, pooled=32)
        self.Mixed_5c = _block_a(256, pooled=64)
        self.Mixed_5d = _block_a(288, pooled=64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(inner=128)
        self.Mixed_6c = _block_c(inner=160)
        self.Mixed_6d = _block_c(inner=160)
        self.Mixed_6e = _block_c(inner=192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, pool="mean")
        self.Mixed_7c = _block_e(2048, pool="maximum")

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        x = (resize_as_tensorflow_1(pictures_B3HW.float(), _INPUT_SIZE) - 128) / 128
        for name, layer in self.named_children():
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = _POOLS["halve"](x)
        return x.mean((2, 3))


def resize_as_tensorflow_1(x_BCHW: Tensor, size: int) -> Tensor:
    """Resize bilinearly to (B, C, size, size), reading pixel i at i * H / size as TensorFlow 1 did;
    there is no antialiasing.
    """
    for dim in (3, 2):
        length = x_BCHW.shape[dim]
        position = torch.arange(size, device=x_BCHW.device, dtype=torch.float32) * (length / size)
        low = position.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        share = (position - low).view(-1, *[1] * (3 - dim))
        lower, upper = x_BCHW.index_select(dim, low), x_BCHW.index_select(dim, high)
        x_BCHW = lower + (upper - lower) * share
    return x_BCHW


class _Convolution(nn.Module):
    def __init__(self, channels: int, layer: _Layer, *, padded: bool = True) -> None:
        super().__init__()
        kernel = (layer.height, layer.width)
        padding = (layer.height // 2, layer.width // 2) if padded and layer.stride == 1 else 0
        self.conv = nn.Conv2d(channels, layer.channels, kernel, layer.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(layer.channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Parallel branches whose channels are concatenated."""

    def __init__(self, channels: int, *branches: tuple[_Step, ...]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = channels
            for step in branch:
                if isinstance(step, str):
                    continue
                for layer in (step,) if isinstance(step, _Layer) else step:
                    self.add_module(layer.name, _Convolution(width, layer))
                if isinstance(step, _Layer):
                    width = step.channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._follow(branch, x) for branch in self.branches], dim=1)

    def _follow(self, branch: tuple[_Step, ...], x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = _POOLS[step](x)
            elif isinstance(step, _Layer):
                x = getattr(self, step.name)(x)
            else:
                x = torch.cat([getattr(self, layer.name)(x) for layer in step], dim=1)
        return x


def _block_a(channels: int, *, pooled: int) -> _Block:
    return _Block(
        channels,
        (_Layer("branch1x1", 64, 1, 1),),
        (_Layer("branch5x5_1", 48, 1, 1), _Layer("branch5x5_2", 64, 5, 5)),
        (
            _Layer("branch3x3dbl_1", 64, 1, 1),
            _Layer("branch3x3dbl_2", 96, 3, 3),
            _Layer("branch3x3dbl_3", 96, 3, 3),
        ),
        ("mean", _Layer("branch_pool", pooled, 1, 1)),
    )


def _block_b(channels: int) -> _Block:
    return _Block(
        channels,
        (_Layer("branch3x3", 384, 3, 3, stride=2),),
        (
            _Layer("branch3x3dbl_1", 64, 1, 1),
            _Layer("branch3x3dbl_2", 96, 3, 3),
            _Layer("branch3x3dbl_3", 96, 3, 3, stride=2),
        ),
        ("halve",),
    )


def _block_c(*, inner: int) -> _Block:
    return _Block(
        768,
        (_Layer("branch1x1", 192, 1, 1),),
        (
            _Layer("branch7x7_1", inner, 1, 1),
            _Layer("branch7x7_2", inner, 1, 7),
            _Layer("branch7x7_3", 192, 7, 1),
        ),
        (
            _Layer("branch7x7dbl_1", inner, 1, 1),
            _Layer("branch7x7dbl_2", inner, 7, 1),
            _Layer("branch7x7dbl_3", inner, 1, 7),
            _Layer("branch7x7dbl_4", inner, 7, 1),
            _Layer("branch7x7dbl_5", 192, 1, 7),
        ),
        ("mean", _Layer("branch_pool", 192, 1, 1)),
    )


def _block_d(channels: int) -> _Block:
    return _Block(
        channels,
        (_Layer("branch3x3_1", 192, 1, 1), _Layer("branch3x3_2", 320, 3, 3, stride=2)),
        (
            _Layer("branch7x7x3_1", 192, 1, 1),
            _Layer("branch7x7x3_2", 192, 1, 7),
            _Layer("branch7x7x3_3", 192, 7, 1),
            _Layer("branch7x7x3_4", 192, 3, 3, stride=2),
        ),
        ("halve",),
    )


def _block_e(channels: int, *, pool: str) -> _Block:
    return _Block(
        channels,
        (_Layer("branch1x1", 320, 1, 1),),
        (
            _Layer("branch3x3_1", 384, 1, 1),
            (_Layer("branch3x3_2a", 384, 1, 3), _Layer("branch3x3_2b", 384, 3, 1)),
        ),
        (
            _Layer("branch3x3dbl_1", 448, 1, 1),
            _Layer("branch3x3dbl_2", 384, 3, 3),
            (_Layer("branch3x3dbl_3a", 384, 1, 3), _Layer("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pool, _Layer("branch_pool", 192, 1, 1)),
    )
