"""Run mypy over the packages as they are installed: `training/` is `mlm_infer.training`, and so on.

mypy cannot see the mapping of folders to packages in setup.cfg, so this lays the sources out as links in the
shape that the wheel has.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Return mypy's exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch, "mlm_infer")
        package.mkdir()
        for source in (ROOT / "mlm_infer").iterdir():
            (package / source.name).symlink_to(source)
        for part in ("training", "export", "benchmarks"):
            (package / part).symlink_to(ROOT / part)
        for part in ("tests", "tools", "examples"):
            Path(scratch, part).symlink_to(ROOT / part)
        (Path(scratch) / "setup.cfg").symlink_to(ROOT / "setup.cfg")
        cache = ROOT / ".mypy_cache"
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--cache-dir",
            str(cache),
            "mlm_infer",
            "tests",
            "tools",
            "examples",
        ]
        return subprocess.run(command, cwd=scratch, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
