"""Tests of mlm_infer.ray."""
