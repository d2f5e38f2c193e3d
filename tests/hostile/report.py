"""The counts by family, and for each fault the command to type."""
from __future__ import annotations
import sys, itertools
from pathlib import Path
import tempfile
from hostile.case import fault
from hostile.driver import load, run
def main(argv):
    from hostile.numbers import numbers
    load()
    with tempfile.TemporaryDirectory() as t:
        f = Path(t)
        import collections
        bad=0
        for i, case in enumerate(itertools.islice(numbers(f, int(argv[0])), int(argv[1]))):
            a = run(case)
            w = fault(case, a)
            if w:
                bad+=1
                print(f"{case.name} | {w} | rc {a.code} | {a.seconds:.1f} s | {a.err.strip().splitlines()[-1][:150] if a.err.strip() else ''}", flush=True)
    print(i+1, bad)
