"""Tests of `mlm-serve` over real HTTP."""
