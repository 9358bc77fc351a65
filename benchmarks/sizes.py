"""How many bytes an N:M tensor takes, from its number of elements.

The values are the N kept of each group of M. The sparse metadata is the place of each
in its group, ceil(log2 M) bits: 2 for 2:4, as tensor cores read it. A 16-bit 2:4 tensor
takes 9/16 of its dense bytes.

Source: Lu et al., ICML 2023 (STEP), Table 5, which counts values only.
"""

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern


def values_bytes(elements: int, pattern: NMPattern, value_bytes: int = 2) -> int:
    """Bytes of the kept values of an N:M tensor.

    Args:
        elements: Of the dense tensor.
        pattern: The N:M pattern.
        value_bytes: Bytes of one value; 2 for fp16 and bf16.

    Raises:
        UsageError: The elements do not divide into groups of M.
    """
    return _kept(elements, pattern) * value_bytes


def metadata_bytes(elements: int, pattern: NMPattern) -> int:
    """Bytes of the places of the kept values, rounded up; none where all are kept.

    Raises:
        UsageError: The elements do not divide into groups of M.
    """
    if pattern.dense:
        return 0
    bits = (pattern.m - 1).bit_length()  # ceil(log2 M), without rounding of floats
    return -(-_kept(elements, pattern) * bits // 8)


def sparse_bytes(elements: int, pattern: NMPattern, value_bytes: int = 2) -> int:
    """Bytes of an N:M tensor, kept values and sparse metadata.

    Raises:
        UsageError: The elements do not divide into groups of M.
    """
    values = values_bytes(elements, pattern, value_bytes)
    return values + metadata_bytes(elements, pattern)


def _kept(elements: int, pattern: NMPattern) -> int:
    if elements % pattern.m:
        raise UsageError(
            f"{elements} elements are not a multiple of M={pattern.m}; "
            "exclude this layer or pad it"
        )
    return elements // pattern.m * pattern.n
