"""The inputs and outputs of a bundle's models: the interface between export and run time.

Every model, on either backend, computes its outputs at given mask positions instead of at every position:

| input | shape | content |
| --- | --- | --- |
| `input_ids`, `attention_mask`, `token_type_ids` | [batch, length] | as far as the encoder takes them |
| `mask_positions` | [batch, slots] | flat indices into batch * length; a text with fewer masks repeats one |
| `mask_rows` | [rows] | flat indices into batch * slots, without the repetitions |
| `k` | [1] | predictions per mask; 0 skips the top-k search |
| `candidates` | [rows, n] | token ids whose log-probabilities to return; n may be 0 |

| output | shape | content |
| --- | --- | --- |
| `top_ids`, `top_logprobs` | [rows, k] | the k most probable tokens, best first |
| `candidate_logprobs` | [rows, n] | log-probabilities of the candidates |
| `logits` | [rows, vocabulary] | all logits, which need much memory; fetched by checks only |
| `log_normalizer` | [rows, 1] | log-sum-exp of the logits |

Integers are int64, everything else is float32. If the backend allows it, outputs that are not fetched are not computed.
"""

__all__ = ["BACKENDS", "ENCODER_INPUTS", "FORMATS", "HOST_INPUTS", "OUTPUTS", "PRECISIONS"]

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

HOST_INPUTS = ("k",)
"""Inputs that determine the shape of an output and therefore stay in host memory on every device."""

OUTPUTS = ("top_ids", "top_logprobs", "candidate_logprobs", "logits", "log_normalizer")

PRECISIONS = ("fp32", "fp16", "int8")
"""Precisions of ONNX models; a TorchScript model is fp32."""

FORMATS = ("onnx", "torchscript")
"""Formats of models in a bundle."""

BACKENDS = ("onnx", "openvino", "torchscript")
"""The backends: ONNX Runtime, the default; OpenVINO, which runs the same models; and torch. The latter two are used on
request only."""
