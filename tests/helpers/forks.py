"""A program that forks with a model open."""

__all__ = ["ANSWERED", "FORK"]

FORK = """
import os, signal, sys, threading
from mlm_infer import MaskFiller
filler = MaskFiller()
{before}
child = os.fork()
if not child:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)
    {inside}
    sys.exit(7)
signal.alarm(50)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""A child that hangs, even in a destructor, is ended by its alarm; 7 says that it came to its end by itself."""


ANSWERED = "before, texts = filler.fill('A [MASK] film.'), ['A [MASK] film.'] * 9; filler.fill_batch(texts)"
