"""`python -m mlm_infer.benchmarks`: the same as `mlm-bench`. The comparison with other engines is in `peers`."""

from .cli import main

main()
