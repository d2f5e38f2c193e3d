"""``python -m hostile``, typed in the folder of the tests: try hostile inputs on the command."""

from __future__ import annotations

import sys

from hostile.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
