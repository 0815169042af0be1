"""GPTQ's and AWQ's ways to store 4 bits, written here by their rule, read back."""

import torch

from distill.model.layouts import AWQ_ORDER, read_codes


def _numbers() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned codes (O=16, I=64), zero points (O, G=2) and scales (O, G)."""
    torch.manual_seed(0)
    return torch.randint(0, 16, (16, 64)), torch.randint(1, 16, (16, 2)), torch.rand(16, 2) + 0.5


def _words(nibbles: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """(R, 8 W) -> (R, W) int32: element order[k] of eight goes to nibble k."""
    grouped = nibbles.view(nibbles.shape[0], -1, 8).to(torch.int64)
    words = sum(grouped[..., order[k]] << (4 * k) for k in range(8))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _weight(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> torch.Tensor:
    return (codes - zeros[:, group_of]) * scales[:, group_of]


def test_gptq_with_activation_order_in_both_its_formats() -> None:
    codes, zeros, scales = _numbers()
    group_of = torch.randperm(64) // 32
    natural = tuple(range(8))
    for format_, less in (("gptq", 1), ("gptq_v2", 0)):
        tensors = {
            "qweight": _words(codes, natural).T.contiguous(),
            "qzeros": _words((zeros - less).T, natural),
            "scales": scales.T.contiguous(),
            "g_idx": group_of.to(torch.int32),
        }
        # qweight is packed along the inputs: (I / 8, O)
        found = read_codes({"quant_method": "gptq", "checkpoint_format": format_}, tensors)
        assert found.group_of is not None and found.zeros is not None
        got = _weight(found.codes, found.zeros, found.scales, found.group_of)
        assert torch.equal(got, _weight(codes, zeros, scales, group_of))


def test_awq() -> None:
    codes, zeros, scales = _numbers()
    tensors = {
        "qweight": _words(codes.T.contiguous(), AWQ_ORDER),
        "qzeros": _words(zeros.T.contiguous(), AWQ_ORDER),
        "scales": scales.T.contiguous(),
    }
    found = read_codes({"quant_method": "awq"}, tensors)
    assert found.zeros is not None and found.group_of is None
    runs = torch.arange(64) // 32
    assert torch.equal(_weight(found.codes, found.zeros, found.scales, runs), _weight(codes, zeros, scales, runs))
