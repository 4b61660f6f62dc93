"""Export: parity with PyTorch, graph passes, int8, fp16, every architecture."""
