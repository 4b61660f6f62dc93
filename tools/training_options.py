"""Write the table of all options of `mlm-train` to the end of docs/training.md.

python tools/training_options.py
"""

from pathlib import Path

import click
from mlm_infer.training.cli import main

PAGE = Path(__file__).resolve().parent.parent / "docs/training.md"
HEADING = "## All options"


def options_table() -> str:
    """Return every option with its help, as Markdown."""
    lines = ["| option | meaning |", "|---|---|"]
    context = click.Context(main)
    for each in main.params:
        if isinstance(each, click.Option) and each.name != "version":
            shown, text = each.get_help_record(context) or ("", "")
            lines.append(f"| `{shown.replace('|', ', ')}` | {text.replace('|', ', ')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before, _, _ = PAGE.read_text(encoding="utf-8").partition(HEADING)
    PAGE.write_text(f"{before.rstrip()}\n\n{HEADING}\n\n{options_table()}", encoding="utf-8")
