"""`python -m mlm_infer.export`: the same as `mlm-export`."""

from .cli import main

main()
