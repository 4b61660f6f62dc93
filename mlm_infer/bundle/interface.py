"""What a model of a bundle takes and gives, by name: the one agreement between the export and the run time.

Every model, whichever backend runs it, answers at chosen mask positions rather than at every position:

| input | shape | holds |
| --- | --- | --- |
| `input_ids`, `attention_mask`, `token_type_ids` | [batch, length] | those of the three that the encoder takes |
| `mask_positions` | [batch, slots] | indices into batch * length; a text with fewer masks repeats one |
| `mask_rows` | [rows] | indices into batch * slots: those that are masks and no repetition |
| `k` | [1] | predictions per mask; 0 leaves the search for the best out |
| `candidates` | [rows, n] | token ids whose log-probabilities are asked for; n may be 0 |

| output | shape | holds |
| --- | --- | --- |
| `top_ids`, `top_logprobs` | [rows, k] | the k most probable tokens, best first |
| `candidate_logprobs` | [rows, n] | log-probabilities of the candidates |
| `logits` | [rows, vocabulary] | the whole row, which costs memory: fetched by checks alone |
| `log_normalizer` | [rows, 1] | log of the sum of exponentials of that row |

Integers are int64, the rest float32. An output that is not fetched is not computed where the backend allows it.
"""

__all__ = ["BACKENDS", "ENCODER_INPUTS", "HOST_INPUTS", "OUTPUTS", "PRECISIONS"]

ENCODER_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

HOST_INPUTS = ("k",)
"""Inputs that decide the shape of an output, so that they stay in the memory of the CPU whatever the device."""

OUTPUTS = ("top_ids", "top_logprobs", "candidate_logprobs", "logits", "log_normalizer")

PRECISIONS = ("fp32", "fp16", "int8")
"""Of ONNX models; a TorchScript model is fp32."""

BACKENDS = ("onnx", "torchscript")
"""What runs a model: ONNX Runtime, the only one that is taken unasked, and torch."""
