"""Hashes of names, of ids and of runs of numbers: the same in every process, and independent from purpose to purpose.

Two uses of one key, such as a document's id, must not agree: else what one use chooses tells what the other does. Each
use therefore names its domain.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

# N = ids, T = numbers in a row

# Odd, and with well mixed bits: multiplying by it is a bijection of the 64-bit numbers.
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


def hash_bytes(domain: str, *parts: str | int | bytes, num_bytes: int) -> bytes:
    """BLAKE2b of the parts, each marked off from the next.

    Args:
        domain: what the hash is used for; at most 16 bytes.
    """
    digest = blake2b(digest_size=num_bytes, person=domain.encode())
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def hash64(domain: str, *parts: str | int | bytes) -> int:
    """A uniform number below 2^64."""
    return int.from_bytes(hash_bytes(domain, *parts, num_bytes=8), "big")


def id_ranks(domain: str, seed: int, *ids_N2: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """uint64[N], uniform: the order in which to choose from documents, or from pairs of them.

    The documents whose rank is smallest, or below a limit, are a random sample; a larger one holds the smaller one.

    Args:
        domain: what is chosen.
        ids_N2: ids as `doc_ids.id_numbers` gives them; one array for documents, two for pairs.
    """
    key = np.uint64(hash64(domain, seed))
    ranks_N = np.full(len(ids_N2[0]), key)
    for numbers_N2 in ids_N2:
        for half in (0, 1):
            ranks_N = mixed(mixed(ranks_N ^ numbers_N2[:, half]))
    return ranks_N ^ key


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection in which each bit of the result depends on many; unsigned arithmetic on arrays wraps around."""
    values = values * _MULTIPLIER
    return values ^ (values >> _SHIFT)


def run_hashes(values_T: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """uint64[T - length + 1]: a hash of each run of `length` numbers; empty where there are fewer."""
    hashes = np.full(max(0, len(values_T) - length + 1), length, np.uint64)
    for offset in range(length):
        hashes = mixed(hashes ^ values_T[offset : offset + len(hashes)])
    return hashes
