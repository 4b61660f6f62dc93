"""`python -m mlm_infer.export.first_use MODEL OUTPUT ARGUMENTS`: the export in a separate process on first use.

`MaskFiller` starts it for a checkpoint or plain export that has no bundle in the cache yet
(`mlm_infer/locate/cache.py`), so that the serving process does not load torch. ARGUMENTS are the keyword arguments of
`export_bundle` as JSON. Progress is reported on stdout, one JSON object per line: `{"step": ...}` at the start of each
step, and `{"error": ...}` if the export fails.
"""

import json
import os
import sys

from mlm_infer.errors import MlmInferError
from mlm_infer.shared.command import command_errors, message_of


@command_errors
def main() -> None:
    """Export, and report progress."""
    # Libraries print to stdout, so it is redirected to stderr, and the events keep a copy of the original.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(**event: str) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    from . import export_bundle

    model, output, arguments = sys.argv[1:]
    try:
        export_bundle(model, output, on_step=lambda text: report(step=text), **json.loads(arguments))
    except (MlmInferError, OSError) as error:
        report(error=message_of(error))
        raise


if __name__ == "__main__":
    main()
