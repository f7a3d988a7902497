"""Inception's features against torch-fidelity's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from schemas.errors import ConfigError
from tests.support.scores import space


def inception_weights(shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The same random weights on every machine: numpy keeps RandomState as it is."""
    rng, weights = np.random.RandomState(0), {}
    for key in sorted(shapes):
        values = rng.standard_normal(shapes[key]).astype(np.float32)
        if key.endswith("conv.weight"):
            values *= np.sqrt(2 / values[0].size)
        elif key.endswith(("running_var", "bn.weight")):
            values = 1 + 0.1 * np.tanh(values)
        else:
            values *= 0.1
        weights[key] = torch.from_numpy(values)
    return weights


def test_inception_features_equal_torch_fidelitys(tmp_path):
    """The figures are those of torch-fidelity 0.4's network with the same weights and pictures,
    which gave ours bit by bit; its package needs torchvision, hence figures.
    """
    from stages.scores.inception import InceptionV3

    with torch.device("meta"):
        names = InceptionV3().state_dict()
    shapes = {k: v.shape for k, v in names.items() if not k.endswith("num_batches_tracked")}
    save_file(inception_weights(shapes), tmp_path / "inception.safetensors")
    pictures = (np.arange(2 * 40 * 72 * 3) * 7919 % 256).astype(np.uint8).reshape(2, 40, 72, 3)
    inception = space("inception_features", tmp_path)
    features = inception.features(pictures)
    assert features.shape == (2, inception.width) and features.dtype == np.float32
    np.testing.assert_allclose(features.mean(1), INCEPTION_MEAN, rtol=1e-4)
    np.testing.assert_allclose(features.std(1), INCEPTION_DEVIATION, rtol=1e-4)
    np.testing.assert_allclose(features[:, [500, 1000, 1500, 2047]], INCEPTION_SOME, rtol=1e-3)


INCEPTION_MEAN = [0.6310054, 0.6309057]
INCEPTION_DEVIATION = [0.83760387, 0.83750015]
INCEPTION_SOME = [
    [0.2036508, 0.0013953, 0.0732016, 0.1084103],
    [0.1981662, 0.0016297, 0.0738349, 0.1054503],
]


def test_inception_weights_that_are_not_whole_are_said_so(tmp_path):
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "inception.safetensors")
    with pytest.raises(ConfigError, match=r"lacks \d+ of the network's weights, such as Conv2d_1a"):
        space("inception_features", tmp_path)
