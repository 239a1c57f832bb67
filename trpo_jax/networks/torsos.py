"""Torsos of a network: observations to features."""

import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from trpo_jax.errors import UsageError
from trpo_jax.networks.initializers import orthogonal

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class MLP(nn.Module):
    """Dense layers, each with an activation, on flattened observations.

    Attributes:
        hidden_sizes: Width of each layer; if empty, the features are the observation.
        activation: Function after each layer.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> Float[Array, "N F"]:
        """Map observations [N, …] to features float[N, F]."""
        x = observations.reshape(observations.shape[0], -1)
        for size in self.hidden_sizes:
            x = self.activation(nn.Dense(size, kernel_init=orthogonal(math.sqrt(2)))(x))
        return x


class CNN(nn.Module):
    """Convolutions without padding, each with an activation, then an MLP.

    Each convolution is a product of its patches with a matrix. Training several seeds
    side by side maps it over kernels: a convolution would become a grouped convolution,
    which is slow, while the product becomes a batched product.

    Attributes:
        channels: Number of filters of each convolution.
        kernel_size: Height and width of the filters.
        stride: Step between patches.
        hidden_sizes: Width of each dense layer that follows.
        activation: Function after each layer.
    """

    channels: tuple[int, ...] = (16,)
    kernel_size: int = 3
    stride: int = 1
    hidden_sizes: tuple[int, ...] = (128,)
    activation: Activation = nn.relu

    @nn.compact
    def __call__(self, observations: Num[Array, "N ..."]) -> Float[Array, "N F"]:
        """Map images [N, H, W, C], or [N, H, W] of one channel, to features [N, F].

        Raises:
            UsageError: If observations are not images, or smaller than the filters.
        """
        if observations.ndim not in (3, 4):
            raise UsageError(
                f"observations of shape {observations.shape[1:]} are not images [H, W, "
                "C] or [H, W]; write channels=() for an MLP on flat observations."
            )
        x = observations.reshape(*observations.shape[:3], -1)
        for filters in self.channels:
            patches = _patches(x, self.kernel_size, self.stride)
            layer = nn.Dense(filters, kernel_init=orthogonal(math.sqrt(2)))
            x = self.activation(layer(patches))
        return MLP(self.hidden_sizes, self.activation)(x)


def _patches(
    images: Num[Array, "N H W C"], size: int, stride: int
) -> Num[Array, "N H2 W2 P"]:
    """Return every size × size patch, its pixels side by side on the last axis."""
    height, width = (
        (length - size) // stride * stride + 1 for length in images.shape[1:3]
    )
    if min(height, width) < 1:
        raise UsageError(
            f"images of {images.shape[1]} × {images.shape[2]} are smaller than filters "
            f"of {size} × {size}; write fewer convolutions (channels), or a smaller "
            "stride or kernel."
        )
    offsets = itertools.product(range(size), repeat=2)
    return jnp.concatenate(
        [
            images[:, row : row + height : stride, column : column + width : stride]
            for row, column in offsets
        ],
        axis=-1,
    )
