"""Paths in the repository."""

from pathlib import Path

__all__ = ["ROOT", "SHIPPED"]

ROOT = Path(__file__).resolve().parent.parent.parent
"""The repository."""

SHIPPED = ROOT / "mlm_infer/resources/english-small"
"""The bundle in the wheel."""
