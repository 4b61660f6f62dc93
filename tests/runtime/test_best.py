"""Top-k outside the graph."""

import numpy as np

from mlm_infer.runtime.best import best_of


def test_best_of_a_row() -> None:
    """The k largest; among equals the lower index first, as in ONNX Runtime; NaN is smallest."""
    row = np.array([1, 3, 3, np.nan, 3, 0], np.float32)
    for k in range(7):
        assert best_of(np.arange(6), row, k)[0].tolist() == [1, 2, 4, 0, 5, 3][:k]
