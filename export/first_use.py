"""`python -m mlm_infer.export.first_use MODEL OUTPUT ARGUMENTS`: an export on behalf of another process.

`MaskFiller` starts it for a checkpoint that has no bundle yet, so that torch is not loaded into the serving process.
It tells of itself on stdout, a JSON object per line: `{"step": ...}` as each step begins, `{"error": ...}` at the end
of one that failed. ARGUMENTS are the keyword arguments of `export_bundle`, as JSON.
"""

import json
import os
import sys

from mlm_infer.errors import MlmInferError
from mlm_infer.shared.command import command_errors, message_of


@command_errors
def main() -> None:
    """Export, and tell of it."""
    # Libraries write to stdout; the events need a channel of their own.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(**event: str) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    from . import export_bundle

    model, output, arguments = sys.argv[1:]
    try:
        export_bundle(model, output, on_step=lambda text: tell(step=text), **json.loads(arguments))
    except (MlmInferError, OSError) as error:
        tell(error=message_of(error))
        raise


if __name__ == "__main__":
    main()
