"""Which neurons a step raises, when a random part of them is left out: a hash, the same on every backend.

The released script draws a new mask at every forward call, so its answers depend on the batch. This one depends on
(seed, position, layer, neuron) alone: the same for a request alone, in a batch, and on another backend.
"""

from __future__ import annotations

from torch import Tensor

WORD = 0xFFFFFFFF


def mix(word: Tensor) -> Tensor:
    """The finaliser of MurmurHash3: int64 tensors that hold 32-bit words, modulo 2^32."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & WORD
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & WORD
    return word ^ (word >> 16)


def hash_words(seed: Tensor, position: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """``m(m(m(m(seed) + position) + layer) + neuron)``, all modulo 2^32, ``m`` being :func:`mix`.

    Args:
        seed: int64 [...], of the row.
        position: int64 [...], of the token in its sequence, padding not counted.
        layer: Layer, from 0.
        neurons: int64 [n], the model's numbers of neurons.

    Returns:
        int64 [..., n], 32-bit words.
    """
    word = mix((mix(seed & WORD) + position) & WORD)
    word = mix((word + layer) & WORD).unsqueeze(-1)
    return mix((word + neurons) & WORD)
