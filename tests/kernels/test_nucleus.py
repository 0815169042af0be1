"""The least probability that top-p keeps, against sorting: compiled on a GPU, elsewhere by Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("needs a GPU, or Triton and TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="the kernels need Triton")
from distill.kernels.nucleus import nucleus_threshold  # noqa: E402

DEVICE = "cuda" if ON_GPU else "cpu"


def _by_sorting(probs: torch.Tensor, wanted: float) -> float:
    gathered, least = 0.0, 0.0
    for p in sorted(probs.double().tolist(), reverse=True):
        if gathered >= wanted:
            return least
        gathered, least = gathered + p, p
    return 0.0 if gathered < wanted else least


@pytest.mark.parametrize("vocab", [7, 5000])
def test_threshold(vocab: int) -> None:
    """Flat and peaked rows, ties, rows that are one token, and more asked for than there is."""
    torch.manual_seed(0)
    logits = torch.randn(6, vocab) * torch.tensor([0.0, 0.1, 1.0, 4.0, 30.0, 1.0])[:, None]
    logits[5] = logits[5].round()  # ties
    probs = logits.softmax(-1)
    for wanted in (0.001, 0.5, 0.9, 1.5):
        column = torch.full((6, 1), wanted, device=DEVICE)
        found = nucleus_threshold(probs.to(DEVICE), column).squeeze(1).tolist()
        for row, value in enumerate(found):
            expected = _by_sorting(probs[row], wanted)
            if row in (0, 5) and wanted < 1.0:  # equal numbers stand together, wherever the sum crosses
                assert value == pytest.approx(expected, rel=1e-6)
            else:
                order = probs[row].sort().values
                at = torch.searchsorted(order, torch.tensor([value, expected]))
                assert abs(int(at[0] - at[1])) <= 1, (wanted, row)  # sums are rounded
