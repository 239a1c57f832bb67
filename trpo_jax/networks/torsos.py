"""Torsos of a network: observations to features."""

import itertools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, Shaped

from trpo_jax.errors import UsageError, array_types
from trpo_jax.networks.initializers import ScaledInitializer, orthogonal
from trpo_jax.observations import Observation

_NUMBERS = (jnp.bool_, jnp.integer, jnp.floating)
Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class MLP(nn.Module):
    """Dense layers, each with an activation, on flattened observations.

    The leaves of a pytree are flattened and concatenated, in the order of
    `jax.tree.leaves`; integers become floats, and bytes (uint8) are divided by 255.

    Attributes:
        hidden_sizes: Width of each layer; if empty, the features are the observation.
        activation: Function after each layer.
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: Activation = nn.tanh
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, observations: Observation) -> Float[Array, "N F"]:
        """Map observations [N, …] to features float[N, F].

        Raises:
            UsageError: If a leaf does not hold numbers.
        """
        leaves = [_as_float(leaf) for _, leaf in _named_leaves(observations)]
        # Not −1, which is unknown where a leaf is empty.
        flat = [leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves]
        x = jnp.concatenate(flat, axis=-1)
        for size in self.hidden_sizes:
            layer = nn.Dense(size, kernel_init=self.initializer(math.sqrt(2)))
            x = self.activation(layer(x))
        return x


class CNN(nn.Module):
    """Convolutions without padding, each with an activation, then an MLP.

    In a pytree, each image has convolutions of its own, and flat leaves join the MLP.
    Bytes (uint8) are divided by 255.

    Each convolution is a product of its patches with a matrix. Training several seeds
    side by side maps it over kernels: a convolution would become a grouped convolution,
    which is slow, while the product becomes a batched product.

    Attributes:
        channels: Number of filters of each convolution.
        kernel_size: Height and width of the filters.
        stride: Step between patches.
        hidden_sizes: Width of each dense layer that follows.
        activation: Function after each layer.
        initializer: Scale of a layer ↦ initialiser of its weights.
    """

    channels: tuple[int, ...] = (16,)
    kernel_size: int = 3
    stride: int = 1
    hidden_sizes: tuple[int, ...] = (128,)
    activation: Activation = nn.relu
    initializer: ScaledInitializer = orthogonal

    @nn.compact
    def __call__(self, observations: Observation) -> Float[Array, "N F"]:
        """Map images [N, H, W, C], or [N, H, W] of one channel, to features [N, F].

        Raises:
            UsageError: If no leaf is an image; if an image is smaller than the filters,
                or has its channels first; or if a leaf is neither an image nor flat.
        """
        maps, flat = [], []
        for name, leaf in _named_leaves(observations):
            if leaf.ndim < 3 and name:
                flat.append(leaf)
                continue
            if leaf.ndim not in (3, 4):
                raise UsageError(
                    f"{_described(name, leaf)} is not an image [H, W, C] or [H, W]"
                    f"{', nor flat' if name else ''}; reshape it, or write channels=() "
                    "for an MLP on flat observations."
                )
            _check_channels_last(name, leaf)
            x = _as_float(leaf)
            x = x.reshape(*x.shape[:3], -1)
            for filters in self.channels:
                patches = _patches(x, self.kernel_size, self.stride, name)
                layer = nn.Dense(filters, kernel_init=self.initializer(math.sqrt(2)))
                x = self.activation(layer(patches))
            maps.append(x)
        if not maps:
            raise UsageError(
                f"observations {array_types(observations)} have no image [N, H, W, C] "
                "or [N, H, W]; write channels=() for an MLP on flat observations."
            )
        mlp = MLP(self.hidden_sizes, self.activation, self.initializer)
        return mlp([*maps, *flat])


def _named_leaves(
    observations: Observation,
) -> list[tuple[str, Shaped[Array, "N ..."]]]:
    """Return the leaves with their paths, as "camera.left"; "" for an array alone."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree.leaves_with_path(observations)
    ]
    for name, leaf in leaves:
        # Not by `isdtype`, which refuses the types of keys.
        if not any(jnp.issubdtype(leaf.dtype, kind) for kind in _NUMBERS):
            raise UsageError(
                f"{_described(name, leaf)} does not hold numbers, which the default "
                "networks take; convert it in the environment, or write a policy and "
                "critic of your own."
            )
    return leaves


def _check_channels_last(name: str, leaf: Shaped[Array, "N ..."]) -> None:
    """Refuse what must be [C, H, W], as PyTorch and frame stacks have it.

    Nobody has images four pixels high with 32 channels.
    """
    if leaf.ndim == 4 and leaf.shape[1] <= 4 and min(leaf.shape[2:]) >= 32:
        raise UsageError(
            f"{_described(name, leaf)} has its channels first; move them to the last "
            "axis in the environment, jnp.moveaxis(image, 0, -1), or write channels=() "
            "for an MLP."
        )


def _described(name: str, leaf: Shaped[Array, "N ..."]) -> str:
    one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return f"the observation{f' entry {name!r}' * bool(name)}, {array_types(one)},"


def _as_float(leaf: Num[Array, "..."] | Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return floats as they are, bytes as shares of 255 and other integers as floats.

    Unscaled, the bytes of an image saturate every tanh of a first layer.
    """
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    x = leaf.astype(jnp.float32)
    return x / 255 if leaf.dtype == jnp.uint8 else x


def _patches(
    images: Num[Array, "N H W C"], size: int, stride: int, name: str
) -> Num[Array, "N H2 W2 P"]:
    """Return every size × size patch, its pixels side by side on the last axis."""
    height, width = (
        (length - size) // stride * stride + 1 for length in images.shape[1:3]
    )
    if min(height, width) < 1:
        raise UsageError(
            f"images{f' {name!r}' * bool(name)} of {images.shape[1]} × "
            f"{images.shape[2]} are smaller than filters of {size} × {size}; write "
            "fewer convolutions (channels), a smaller stride or a smaller kernel, or "
            "flatten in the environment what is not an image."
        )
    offsets = itertools.product(range(size), repeat=2)
    return jnp.concatenate(
        [
            images[:, row : row + height : stride, column : column + width : stride]
            for row, column in offsets
        ],
        axis=-1,
    )
