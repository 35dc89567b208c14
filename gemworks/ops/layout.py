"""The order in which the CPU kernels read a quantized matrix, and the way there and back in numpy.

Sixteen rows make a panel; rows are padded to 16 and columns to 64 with zeros. A line is 64 bytes: 16 rows x 4
consecutive columns of one byte (x 2 columns in bf16), so that one broadcast of 4 activations feeds 16 outputs:

    line        byte   0  1  2  3 | 4  5  6  7 | ...            row 0: columns c..c+3 | row 1: columns c..c+3 | ...

    int8*       u8 = code + 128: unsigned times signed is what VNNI multiplies
    int4*       u8 = two nibbles (value + 8): low one column c of a block's first half, high one column c + 16
    sfp8        the code
    bf16        16 rows x 2 columns

A panel is its columns in order, in units of 64 columns; the -b32 formats close each unit with one line of scales:

    int4-b32    4 lines of block 0, 4 of block 1, 16 fp16 of block 0, 16 of block 1      9 lines
    int8-b32    8 lines of block 0, 8 of block 1, 16 fp16 of block 0, 16 of block 1     17 lines
    int4 8 lines, int8 and sfp8 16 lines, bf16 32 lines; after the last unit one line of 16 fp32 scales (not bf16)

csrc/layout.h states the same numbers. LAYOUT_VERSION changes when any of this does: packed caches are then rebuilt.
"""

from math import prod

import numpy as np

from gemworks.ops.weight import BLOCK, Format, PackedWeight, QuantWeight, code_shapes

LAYOUT_VERSION = 1

ROWS = 16  # rows of a panel
UNIT = 64  # columns of a unit
LINE = 64  # bytes

# Lines of codes in a unit.
_CODE_LINES: dict[Format, int] = {"int4-b32": 8, "int4": 8, "int8-b32": 16, "int8": 16, "sfp8": 16, "bf16": 32}


def panel_bytes(format: Format, D: int) -> int:
    """Return the bytes of a panel of 16 rows of D columns."""
    units = -(-D // UNIT)
    if format.endswith("-b32"):
        return units * (_CODE_LINES[format] + 1) * LINE
    return units * _CODE_LINES[format] * LINE + (0 if format == "bf16" else LINE)


def packed_bytes(format: Format, F: int, D: int) -> int:
    """Return the bytes of a packed [F, D] matrix."""
    return -(-F // ROWS) * panel_bytes(format, D)


def pack(weight: QuantWeight) -> np.ndarray:
    """Return the packed bytes of a matrix, uint8, 64-byte aligned."""
    F, D = weight.shape
    panels, units = -(-F // ROWS), -(-D // UNIT)
    codes = np.asarray(weight.codes)
    out = aligned_bytes(packed_bytes(weight.format, F, D)).reshape(panels, panel_bytes(weight.format, D))
    # A few panels at a time: the temporaries of a 262,144-row matrix would be twice the matrix.
    step = max(1, (1 << 22) // (ROWS * units * UNIT))
    for p in range(0, panels, step):
        rows = slice(p * ROWS, min(F, (p + step) * ROWS))
        part = panel_view(weight.format, out[p : p + step], units)
        part["codes"][...] = _code_lines(weight.format, codes[rows], D, units)
        if "scales" in part:
            part["scales"][...] = _scale_lines(weight.format, np.asarray(weight.scales), rows, D, units)
    return out.reshape(-1)


def unpack(packed: PackedWeight) -> QuantWeight:
    """Return the row-major form of a packed matrix: the same codes and scales, bit for bit."""
    F, D = packed.shape
    panels, units = -(-F // ROWS), -(-D // UNIT)
    data = np.asarray(packed.data).reshape(panels, panel_bytes(packed.format, D))
    part = panel_view(packed.format, data, units)
    rows = _code_rows(packed.format, part["codes"], panels, units)[:F]
    (code_shape, code_dtype), (scale_shape, scale_dtype) = code_shapes(packed.format, F, D)
    codes = np.ascontiguousarray(rows[:, : code_shape[1]]).view(code_dtype)
    if packed.format.endswith("-b32"):
        scales = part["scales"].transpose(0, 3, 1, 2).reshape(panels * ROWS, units * 2)[:F, : D // BLOCK]
    elif packed.format == "bf16":
        scales = np.zeros(0, np.float32)
    else:
        scales = part["scales"].reshape(-1)[: prod(scale_shape)]
    return QuantWeight(codes, np.ascontiguousarray(scales).astype(scale_dtype), packed.format, packed.shape)


def aligned_bytes(count: int) -> np.ndarray:
    """Return `count` zero bytes that start at a multiple of LINE."""
    raw = np.zeros(count + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + count]


def panel_view(format: Format, panels: np.ndarray, units: int) -> dict[str, np.ndarray]:
    """Return views of the packed panels [P, bytes]: codes [P, units, lines, 64], scales as the format has them."""
    P, lines = panels.shape[0], _CODE_LINES[format]
    if format.endswith("-b32"):
        by_unit = panels.reshape(P, units, (lines + 1), LINE)
        scales = by_unit[:, :, lines].view(np.float16).reshape(P, units, 2, ROWS)
        return {"codes": by_unit[:, :, :lines], "scales": scales}
    codes = panels[:, : units * lines * LINE].reshape(P, units, lines, LINE)
    if format == "bf16":
        return {"codes": codes}
    return {"codes": codes, "scales": panels[:, units * lines * LINE :].view(np.float32)}


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    """Return [multiple of 16, width]: the rows with zeros added."""
    return np.pad(rows, ((0, -rows.shape[0] % ROWS), (0, width - rows.shape[1])))


def _code_lines(format: Format, codes: np.ndarray, D: int, units: int) -> np.ndarray:
    """Return [P, units, lines, 64] from the codes of some rows."""
    if format == "bf16":
        both = _padded(codes, units * UNIT).reshape(-1, ROWS, units, 32, 2)
        return np.ascontiguousarray(both.transpose(0, 2, 3, 1, 4)).view(np.uint8).reshape(-1, units, 32, LINE)
    if format.startswith("int4"):
        # Column pairs stay in their byte; a padding nibble is 8, the code of zero.
        rows = np.pad(
            codes, ((0, -codes.shape[0] % ROWS), (0, units * UNIT // 2 - codes.shape[1])), constant_values=0x88
        )
        lines = rows.reshape(-1, ROWS, units, 8, 4)
    else:
        rows = _padded(codes.view(np.uint8), units * UNIT)
        lines = (rows ^ 0x80 if format.startswith("int8") else rows).reshape(-1, ROWS, units, 16, 4)
    return lines.transpose(0, 2, 3, 1, 4).reshape(-1, units, lines.shape[3], LINE)


def _code_rows(format: Format, lines: np.ndarray, panels: int, units: int) -> np.ndarray:
    """Return the inverse of _code_lines: uint8 rows, padding included."""
    width = 2 if format == "bf16" else 4
    item = np.ascontiguousarray(lines).view(np.uint16) if format == "bf16" else lines
    rows = item.reshape(panels, units, -1, ROWS, width).transpose(0, 3, 1, 2, 4).reshape(panels * ROWS, -1)
    return rows ^ 0x80 if format.startswith("int8") else rows


def _scale_lines(format: Format, scales: np.ndarray, rows: slice, D: int, units: int) -> np.ndarray:
    """Return the scales of some rows in the shape of panel_view's."""
    if format.endswith("-b32"):
        return _padded(scales[rows], units * 2).reshape(-1, ROWS, units, 2).transpose(0, 2, 3, 1)
    of_rows = np.full(rows.stop - rows.start, scales[0]) if format == "sfp8" else scales[rows]
    return np.pad(of_rows, (0, -of_rows.size % ROWS)).reshape(-1, ROWS)
