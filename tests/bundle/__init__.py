"""Verification of bundles, and hostile bundles."""
