"""Says whether an installed package computes with its own kernels where there is no compiler."""

import shutil
import subprocess
import sys
from pathlib import Path

import sanrobust
from sanrobust.kernels.native import library

found = [name for name in ("cc", "gcc", "g++", "clang") if shutil.which(name)]
if found:
    sys.exit(f"there must be no compiler, but there is {', '.join(found)}")
if "site-packages" not in Path(sanrobust.__file__).parts:
    sys.exit(f"the installed package must be looked at, not {sanrobust.__file__}")
print(f"kernels: {library.require().name}")
subprocess.run([Path(sys.executable).with_name("sanrobust"), "rotate", "-m", "san10-pair",
                "--num-samples", "20", "--out", "results"], check=True)
