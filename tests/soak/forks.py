"""Fork with an open model and print how the children ended, as JSON.

python -m tests.soak.forks fill,close 4 7

Each child does the steps that are named and ends as programs end, by `sys.exit`. One that does not end is killed.
"""

import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from mlm_infer import MaskFiller
from mlm_infer.errors import InputError

LONGEST = 60
TEXTS = [f"Part {number} of the [MASK] film." for number in range(24)]
STEPS: dict[str, Callable[[MaskFiller], object]] = {
    "fill": lambda filler: filler.fill(TEXTS[0]),
    "batch": lambda filler: filler.fill_batch(TEXTS),
    "words": lambda filler: filler.fill(TEXTS[0], words_only=True),
    "close": MaskFiller.close,
    "open": lambda _: MaskFiller().fill(TEXTS[0]),
}


def child_of(filler: MaskFiller, steps: list[str], expected: object) -> int:
    """Fork; the child runs the steps and exits with 0 if its answers are right."""
    child = os.fork()
    if child:
        return child
    # The default action of the alarm needs nothing of Python: it ends a child that hangs anywhere.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST)
    answers = [STEPS[step](filler) for step in steps]
    given = [answer for step, answer in zip(steps, answers, strict=True) if step in ("fill", "open")]
    sys.exit(0 if expected is None or all(each == expected for each in given) else 1)


def became_of(child: int) -> str:
    """Wait for a child."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "ended", 1: "wrong", -signal.SIGALRM: "hung"}.get(status, f"status {status}")


def idle(steps: list[str], count: int) -> Counter[str]:
    """Fork children of a process that does nothing else."""
    filler = MaskFiller()
    expected = filler.fill(TEXTS[0])
    filler.fill_batch(TEXTS)
    return Counter(map(became_of, [child_of(filler, steps, expected) for _ in range(count)]))


def busy(steps: list[str], seed: int) -> Counter[str]:
    """Fork while another thread makes the first calls of the process, or opens another model."""
    filler = MaskFiller()
    calls = [call for name, call in STEPS.items() if name != "close"]
    work = random.Random(seed).sample(calls, len(calls))
    started = threading.Event()

    def first_calls() -> None:
        started.set()
        # The parent may close what this works on.
        with suppress(InputError):
            for call in work:
                call(filler)

    thread = threading.Thread(target=first_calls)
    thread.start()
    started.wait()
    threading.Event().wait(random.Random(seed).random() * 0.05)
    child = child_of(filler, steps, None)
    thread.join()
    return Counter([became_of(child)])


def main() -> None:
    """Run one case."""
    steps, count, seed = [step for step in sys.argv[1].split(",") if step], int(sys.argv[2]), int(sys.argv[3])
    found = busy(steps, seed) if seed else idle(steps, count)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
