"""Fill texts of mixed lengths and print resident memory after a warm-up and at the end, as JSON.

python -m tests.soak.memory 100000
"""

import json
import sys
from pathlib import Path

from mlm_infer import MaskFiller

from .texts import mixed_texts

_CHUNK = 100
_PAGE = 4096


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def main(count: int) -> None:
    """Fill `count` texts, half of them in batches, after a warm-up of a tenth as many."""
    filler = MaskFiller(device="cpu")
    pool = mixed_texts(5_000, seed=3, longest=filler.info.max_length)
    sizes = []
    warm_up = max(count // 10, 2_000)
    for at in range(0, warm_up + count, _CHUNK):
        chunk = [pool[row % len(pool)] for row in range(at, at + _CHUNK)]
        if at // _CHUNK % 2:
            filler.fill_batch(chunk)
        else:
            for text in chunk:
                filler.fill(text)
        if at >= warm_up:
            sizes.append(resident())
    sys.stdout.write(json.dumps({"texts": count, "warm": sizes[0], "largest": max(sizes), "end": sizes[-1]}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
