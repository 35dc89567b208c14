"""Rounding with data: each column's error is made up for by the columns after it (GPTQ).

Frantar et al. 2022, "GPTQ", https://arxiv.org/abs/2210.17323. For a matrix W [F, D] and its inputs X over calibration
text, it lowers |W X - Q X|^2 rather than |W - Q|^2. With H = X X^T + damping and U the upper Cholesky factor of H^-1
(equation 6 and "Cholesky reformulation"), going through the columns:

    q_i = nearest code of w_i        e = (w_i - q_i) / U_ii        w_j -= e * U_ij  for j > i

The result is in the same formats as rtn.py's. A block's scale is chosen when its first column is reached, from the
weights as they then are: of a few scales around the largest weight the one with the least weighted squared error,
weights 1 / U_ii^2, fitted by least squares and rounded to fp16. So an int4-b32 matrix is still a valid Q4_0. On
`tiny` (512 packed rows that its recipe writes; bf16 1.5479), perplexity by how the scale is found:

                                      int4-b32    int4
    rounded to the nearest (rtn.py)     1.5765    1.5798
    the scale that reaches the largest  1.5611    1.5687
    fitted, all columns weighing alike  1.5634    1.5653
    fitted, as here                     1.5606    1.5638

A tenth or ten times of the damping moves the last line by 0.002 at most.

    columns   0 .. 31 | 32 .. 63 | 64 .. 95 | 96 .. 127 | 128 ..
              group: column by column
                      | rest of the stripe: one product a group
                                                        | rest of the matrix: one product a stripe

Not here: embeddings and heads, whose inputs are single rows of the identity or too wide to pay; they are rounded to the
nearest. Which text to calibrate on is the caller's choice (calibration.py runs it through the model).
"""

import numpy as np

from gemworks.errors import ConfigError
from gemworks.ops.weight import BLOCK, Format, QuantWeight
from gemworks.quant.formats import CODE_RANGE, pack_nibbles

# F rows, D columns, n columns of a group; matrices here are transposed, [D, F], so that a column is contiguous

_STRIPE = 128

# Tried as fractions of the scale that just reaches the largest weight.
_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)

# On the diagonal of H, as a fraction of its mean: the paper's.
DAMPING = 0.01


def gptq(
    weight_FD: np.ndarray,
    hessian_DD: np.ndarray,
    format: Format,
    *,
    damping: float = DAMPING,
    act_order: bool = False,
    name: str = "the matrix",
) -> QuantWeight:
    """Return the matrix in `format`, one of CODE_RANGE. `hessian_DD` is X X^T of its inputs, any positive multiple.

    act_order takes the blocks with the largest inputs first, and the columns so inside each; the file's order stays.
    Memory is about two fp32 copies of the matrix and three fp64 ones of the Hessian. Raises ConfigError for weights
    or inputs that are not finite.
    """
    F, D = weight_FD.shape
    left = weight_FD.astype(np.float32).T.copy()
    if not (np.isfinite(left).all() and np.isfinite(hessian_DD).all()):
        raise ConfigError(
            f"{name} must have finite weights and inputs to be quantized, and it does not.\n"
            "The weights are damaged: fetch or export the model again."
        )
    by_block = format.endswith("-b32")
    order = _order(np.diagonal(hessian_DD), by_block) if act_order else np.arange(D)
    left = left[order]
    upper = inverse_factor(hessian_DD[np.ix_(order, order)], damping)
    importance = 1 / np.diagonal(upper) ** 2
    low, high = CODE_RANGE[format]
    codes = np.empty((D, F), np.int8)
    scales = np.empty((D // BLOCK, F), np.float32)
    if not by_block:
        scales[:] = best_scales(left, importance, low, high)
    for stripe in range(0, D, _STRIPE):
        stripe_end = min(stripe + _STRIPE, D)
        errors = np.empty((stripe_end - stripe, F), np.float32)
        for at in range(stripe, stripe_end, BLOCK):
            end = at + BLOCK
            if by_block:
                found = best_scales(left[at:end], importance[at:end], low, high)
                scales[at // BLOCK] = found.astype(np.float16)
            part = errors[at - stripe : end - stripe]
            _group(left[at:end], upper[at:end, at:end], scales[at // BLOCK], low, high, codes[at:end], part)
            left[end:stripe_end] -= upper[at:end, end:stripe_end].T @ part
        left[stripe_end:] -= upper[stripe:stripe_end, stripe_end:].T @ errors
    return _assembled(codes, scales, order, format)


def _group(left, upper, scale_F, low: int, high: int, codes, errors) -> None:
    """Round the columns of a group one after another, each error going to those behind it; fills codes and errors."""
    inverse_F = np.divide(1, scale_F, out=np.zeros_like(scale_F), where=scale_F != 0)
    for i in range(len(left)):
        code_F = np.rint(left[i] * inverse_F).clip(low, high)
        codes[i] = code_F
        errors[i] = (left[i] - code_F * scale_F) / upper[i, i]
        left[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]


def best_scales(left: np.ndarray, importance: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return one scale for each row of [n, F]: least sum of importance * (w - code * scale)^2 among the scales tried.

    For the codes that a scale gives, the best scale is wq / qq and leaves ww - wq^2 / qq. Where the range of codes is
    not symmetric (-8..7) either sign of the scale is tried: one of them reaches the largest weight with a finer step.
    """
    F = left.shape[1]
    weights = (importance / importance.mean()).astype(np.float32)
    symmetric = low == -high  # both signs are the same scale
    largest_F = np.abs(left).max(axis=0) if symmetric else left[np.abs(left).argmax(axis=0), np.arange(F)]
    weighted = left * weights[:, None]
    best_gain, best = np.full(F, -1, np.float32), np.zeros(F, np.float32)
    for reach in (high,) if symmetric else (low, high):
        for fraction in _FRACTIONS:
            tried = largest_F * np.float32(fraction / reach)
            inverse = np.divide(1, tried, out=np.zeros_like(tried), where=np.abs(tried) > 1e-30)
            codes = left * inverse
            np.rint(codes, out=codes)
            np.clip(codes, low, high, out=codes)
            wq = np.einsum("nf,nf->f", weighted, codes)
            qq = np.einsum("nf,nf,n->f", codes, codes, weights)
            fit = wq / np.maximum(qq, np.float32(1e-30))
            better = wq * fit > best_gain
            best_gain[better], best[better] = (wq * fit)[better], fit[better]
    return best


def inverse_factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Return U fp32, upper triangular with U^T U = (H + damping)^-1.

    With both axes reversed, the lower factor of H becomes R, upper, with H = R R^T; then U = R^-1. One factorization
    and one inverse of a triangle, no inverse of H.
    """
    hessian = hessian.astype(np.float64)
    mean = float(np.diagonal(hessian).mean())
    hessian[np.diag_indices_from(hessian)] += damping * mean if mean > 0 else 1.0
    lower = np.linalg.cholesky(hessian[::-1, ::-1])
    _invert_lower(lower)
    return np.ascontiguousarray(lower[::-1, ::-1]).astype(np.float32)


def _invert_lower(lower: np.ndarray) -> None:
    """Invert a lower triangle in place: halves first, then the square below them is -C^-1 B A^-1."""
    n = len(lower)
    if n <= 64:
        lower[:] = np.tril(np.linalg.inv(lower))
        return
    half = n // 2
    first, below, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(first)
    _invert_lower(second)
    below[:] = -(second @ (below @ first))


def _order(diagonal: np.ndarray, by_block: bool) -> np.ndarray:
    """Return the columns, those with the largest inputs first; whole blocks of 32 where they share a scale."""
    if not by_block:
        return np.argsort(-diagonal, kind="stable")
    blocks = diagonal.reshape(-1, BLOCK)
    first = np.argsort(-blocks.sum(axis=1), kind="stable")
    inside = np.argsort(-blocks[first], axis=1, kind="stable")
    return (first[:, None] * BLOCK + inside).reshape(-1)


def _assembled(codes: np.ndarray, scales: np.ndarray, order: np.ndarray, format: Format) -> QuantWeight:
    """Return the matrix from codes [D, F] and scales [blocks, F] in the order they were made."""
    D, F = codes.shape
    codes_FD = np.empty((F, D), np.int8)
    codes_FD[:, order] = codes.T
    packed = pack_nibbles((codes_FD + 8).astype(np.uint8)) if format.startswith("int4") else codes_FD
    if not format.endswith("-b32"):
        return QuantWeight(packed, scales[0].copy(), format, (F, D))
    scales_FB = np.empty((F, D // BLOCK), np.float16)
    scales_FB[:, order[::BLOCK] // BLOCK] = scales.T
    return QuantWeight(packed, scales_FB, format, (F, D))
