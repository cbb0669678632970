#!/usr/bin/env python3
"""Writes dequantize_cases.bin: random blocks of each weight type and gguf-py 0.19.0's values.

    pip install gguf==0.19.0 numpy && tests/golden/make_dequantize_cases.py

Little-endian records until the end of the file: type number u32, value count u32, byte count u32,
the blocks' bytes, the values as float32. The half-precision scales are finite; everything else in
a block is random.
"""

import pathlib
import struct

import gguf
import numpy as np

# Blocks of each type.
BLOCKS = {
    "F16": 128,
    "BF16": 128,
    "Q4_0": 16,
    "Q4_1": 16,
    "Q5_0": 16,
    "Q5_1": 16,
    "Q8_0": 16,
    "Q4_K": 4,
    "Q5_K": 4,
    "Q6_K": 4,
}
# Byte offsets of the half-precision scales in a block.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def make_blocks(rng: np.random.Generator, name: str) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(BLOCKS[name], block_bytes), dtype=np.uint8)
    if name in ("F16", "BF16"):
        values = rng.normal(size=BLOCKS[name]).astype(np.float32)
        halves = values.astype(np.float16) if name == "F16" else (values.view(np.uint32) >> 16)
        bits = halves.view(np.uint16) if name == "F16" else halves.astype(np.uint16)
        return bits.view(np.uint8).reshape(BLOCKS[name], 2)
    for offset in SCALES[name]:
        scale = (rng.normal(size=BLOCKS[name]) * 0.05).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks


def main() -> None:
    rng = np.random.default_rng(20)
    out = bytearray()
    for name in BLOCKS:
        kind = gguf.GGMLQuantizationType[name]
        blocks = make_blocks(rng, name)
        values = gguf.quants.dequantize(blocks.reshape(1, -1), kind).astype(np.float32).reshape(-1)
        out += struct.pack("<III", int(kind), values.size, blocks.size)
        out += blocks.tobytes() + values.tobytes()
    path = pathlib.Path(__file__).parent / "dequantize_cases.bin"
    path.write_bytes(bytes(out))
    print(path, len(out), "bytes")


if __name__ == "__main__":
    main()
