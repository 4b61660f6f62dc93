"""A model's name to a folder: bundles, plain ONNX exports, checkpoints, the Hub, the cache."""
