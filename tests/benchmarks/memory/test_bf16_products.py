"""Matrix products in bf16 by tiles of fp32."""

import pytest
import torch

from benchmarks.memory import bf16_products


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (8, 8, 8), (17, 9, 20)])
def test_a_product_is_rounded_to_bf16_once(monkeypatch, shape):
    """Also of transposed matrices and of rows that are not next to each other; other types stay as they were."""
    monkeypatch.setattr(bf16_products, "TILE", 8)
    rows, inner, columns = shape
    torch.manual_seed(0)
    left, right = torch.randn(rows, inner), torch.randn(columns, inner).T
    exact = left.bfloat16().double() @ right.bfloat16().double()
    before = left @ right
    library = bf16_products.use_fp32_tiles()
    try:
        product = left.bfloat16().repeat(2, 2)[:rows, :inner] @ right.bfloat16()
        assert torch.equal(left @ right, before)
    finally:
        library._destroy()
    assert product.dtype == torch.bfloat16
    assert torch.allclose(product.double(), exact, rtol=2**-8, atol=1e-6)
