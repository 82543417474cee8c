"""Matrix products in bf16 at the speed of fp32, for CPUs without instructions for them.

Torch's own kernel takes up to a hundred times as long there, and a step at the published sizes hours.
"""

import warnings

import torch
from torch.library import Library

TILE = 1024  # rows and columns that are fp32 at a time


def use_fp32_tiles() -> Library:
    """Let `torch.mm` on a CPU compute products of bf16 matrices in fp32, tile by tile; return what keeps it so.

    A product is rounded to bf16 once, when its sums are complete. Beside the result it needs three tiles of fp32, which
    this call takes.
    """
    buffers = [torch.zeros(TILE, TILE) for _ in range(3)]

    def multiply(left_MK: torch.Tensor, right_KN: torch.Tensor) -> torch.Tensor:
        product_MN = left_MK.new_empty(left_MK.shape[0], right_KN.shape[1])
        if product_MN.dtype != torch.bfloat16:
            return torch.mm(left_MK, right_KN, out=product_MN)
        for rows in _tiles(left_MK.shape[0]):
            for columns in _tiles(right_KN.shape[1]):
                sums = _like(buffers[0], product_MN[rows, columns]).zero_()
                for inner in _tiles(left_MK.shape[1]):
                    factors = left_MK[rows, inner], right_KN[inner, columns]
                    left, right = (
                        _like(buffer, part).copy_(part) for buffer, part in zip(buffers[1:], factors, strict=True)
                    )
                    sums.addmm_(left, right)
                product_MN[rows, columns] = sums
        return product_MN

    library = Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that an operator is replaced
        library.impl("mm", multiply, "CPU")
    return library


def _tiles(length: int) -> list[slice]:
    return [slice(start, min(start + TILE, length)) for start in range(0, length, TILE)]


def _like(buffer: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return the beginning of a buffer in the shape of a tile."""
    return buffer.view(-1)[: part.numel()].view(part.shape)
