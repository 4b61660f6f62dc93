"""Fills masks and prints the answers; tests/runtime/test_emulated.py runs it on emulated processors.

It needs the run time alone.

python tests/helpers/emulated.py BUNDLE PRECISION
"""

import json
import logging
import sys

from mlm_infer import MaskFiller

TEXTS = (
    "[MASK]",
    "This is a great [MASK].",
    "The [MASK] was good, but the [MASK] was far too long.",
    "She poured a [MASK] of coffee and read the paper until the rain stopped.",
    "A slow start, a " + "very " * 30 + "long middle, and a [MASK] ending.",
)


def main() -> None:
    """Open a bundle, replay its known answers, and fill masks one by one and together."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    bundle, precision = sys.argv[1:]
    filler = MaskFiller(bundle, device="cpu", precision=precision, threads=1)
    replayed = True
    try:
        MaskFiller(bundle, device="cpu", precision=filler.info.precision, threads=1, self_test=True).close()
    except Exception as error:  # whatever it is, the test tells
        replayed = False
        sys.stderr.write(f"{error}\n")
    singles = [filler.fill(text, top_k=3) for text in TEXTS]
    answers = [
        [[(each.token_id, each.logprob) for each in mask.predictions] for mask in result.masks]
        for result in (*singles, *filler.fill_batch(TEXTS, top_k=3))
    ]
    found = {"cpu": filler.info.cpu, "precision": filler.info.precision, "replayed": replayed, "answers": answers}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
