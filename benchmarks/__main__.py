"""`python -m mlm_infer.benchmarks`: the same as `mlm-bench`."""

from .cli import main

main()
