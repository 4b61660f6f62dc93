"""Requests of maximum size, each in a process with limited memory and time."""

import resource
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.sizes import report, sizes

_MEMORY = 4_000_000_000

ASKED = {
    "fill, short words": "f.fill('a ' * (n // 2 - 3) + '[MASK]')",
    "fill in windows, short words": "f.fill('a ' * (n // 2 - 3) + '[MASK]', long_text='window')",
    "fill, masks alone": "f.fill('[MASK] ' * (n // 10))",
    "fill in windows, masks alone": "f.fill('[MASK] ' * (n // 10), long_text='window')",
    "fill, one word": "f.fill('a' * (n - 7) + ' [MASK]')",
    "fill, marks upon marks": "f.fill('[MASK]e' + '\u0301' * (n - 7))",
    "fill, right to left": "f.fill('\u202e\u05d0\u05d1 [MASK] ' * (n // 200), long_text='window', top_k=1)",
    "fill, NUL": "f.fill('\\0' * (n - 6) + '[MASK]')",
    "fill, special tokens": "f.fill('[SEP] ' * (n // 7) + '[MASK]', long_text='window')",
    "fill, one target": "f.fill('A [MASK].', targets='x ' * (n // 2))",
    "fill, targets": "f.fill('A [MASK].', targets=['good'] * n)",
    "fill, unknown targets": "f.fill('A [MASK].', targets=['\U0001f600'] * n)",
    "fill, allowed": "f.fill('A [MASK].', allow=[f'good{i}' for i in range(n)] + ['good'])",
    "fill, a pattern": "f.fill('A [MASK].', pattern='a|' * n)",
    "infill, short words": "f.infill('a ' * (n // 2 - 3) + '[MASK]')",
    "infill, spans": "f.infill('[MASK:1-4]' * (n // 10))",
    "rank, short words": "f.rank('a ' * (n // 2 - 3) + '[MASK]', ['good'])",
    "rank, one word": "f.rank('a' * (n - 7) + ' [MASK]', ['good', 'bad'])",
    "rank, one candidate": "f.rank('A [MASK].', ['x ' * (n // 2)])",
    "rank, candidates": "f.rank('A [MASK].', [f'good {i}' for i in range(n // 10)])",
    "score, short words": "f.score(['a ' * (n // 2)])",
    "score in windows, a tenth of a percent": "f.score(['a ' * (n // 1000)], long_text='window')",
    "score, one word": "f.score(['a' * n], method='pll_word_l2r')",
    "the pipeline's form, one target": "f('A [MASK].', targets=['good', 'x ' * (n // 2)])",
}
_SHORT = 20_000
_REFUSED = {
    "fill, short words",
    "fill, masks alone",
    "fill, one target",
    "fill, unknown targets",
    "infill, short words",
    "infill, spans",
    "rank, short words",
    "rank, one candidate",
    "score, short words",
}
"""Too much at any size, or unknown to the model. Everything else is answered where it is short."""

_SCRIPT = """
import sys, resource
from mlm_infer import InputError, MaskFiller
f, n = MaskFiller(threads=1), int(sys.argv[1])
try:
    {ask}
    found = "answered"
except InputError as error:
    found = str(error)
    assert len(found) < 400 and "\\n" not in found
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, found)
"""


@sizes("characters", short=_SHORT, full=1_000_000)
@pytest.mark.parametrize("name", ASKED)
def test_large(name: str, characters: int) -> None:
    """An answer or a one-line error, within 4 GB of address space and ten minutes."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT.format(ask=ASKED[name]), str(characters)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    megabytes, _, found = done.stdout.strip().partition(" ")
    assert (found != "answered") if name in _REFUSED else (found == "answered" or characters > _SHORT), found
    report(f"{name}, {characters:,}: {megabytes} MB; {found:.90}")
