"""`python -m mlm_infer.training` is `mlm-train`, as `torchrun -m` starts it."""

from .cli import main

main()
