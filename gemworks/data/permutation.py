"""A shuffled order that is computed, not stored: position i of n under a seed, in constant memory.

A Feistel network is a bijection on pairs of k-bit halves whatever its round function; values outside 0 ... n - 1 are
walked on until one falls inside (cycle walking; fewer than four steps on average, as the domain is below 4 n).
"""

_MASK = 2**64 - 1
_ROUNDS = 6


def mixed(value: int) -> int:
    """Return 64 well-mixed bits of an integer (the finaliser of splitmix64; Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key_of(*parts: int) -> int:
    """Return a 64-bit key of several integers, as a seed, a group and an epoch."""
    key = 0
    for part in parts:
        key = mixed(key ^ (part & _MASK))
    return key


def permuted(index: int, size: int, key: int) -> int:
    """Return where `index` of 0 ... size - 1 goes in the order of `key`. One-to-one for each (size, key)."""
    assert 0 <= index < size
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (mixed(key ^ (right << 8 | number)) & mask)
        index = left << half | right
        if index < size:
            return index
