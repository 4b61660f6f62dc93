"""Insert the newest figures of benchmarks/results into the README."""

import json
import re
from pathlib import Path

import click
from mlm_infer.benchmarks.report import markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- benchmarks: python tools/readme_benchmarks.py -->", "<!-- end -->"


def figures() -> str:
    """Return the table and the chart of the first shape in the newest results."""
    newest = max((ROOT / "benchmarks/results").glob("*.json"))
    results = json.loads(newest.read_text(encoding="utf-8"))
    shape = next(iter(results["shapes"]))
    chart = f"![speed-up over the transformers pipeline](benchmarks/results/{newest.stem}.png)"
    return f"{markdown(results, [shape])}\n{chart}\n"


def updated(readme: str) -> str:
    """Return a README with updated figures."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    return pattern.sub(lambda _match: f"{BEGIN}\n{figures()}{END}", readme)


@click.command()
def main() -> None:
    """Rewrite the README."""
    path = ROOT / "README.md"
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
