"""Prints the oldest versions that setup.cfg admits, one ``name==version`` a line, for pip.

Those of the package itself and of the named extras: ``python .ci/oldest.py dev torchattacks``.
"""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

SETTINGS = Path(__file__).resolve().parents[1] / "setup.cfg"
_BOUND = re.compile(r"([\w.-]+)>=([\w.]+)")


def oldest(settings: str, extras: list[str]) -> list[str]:
    """Return the pins for the text of a setup.cfg; raises ValueError where a bound is missing."""
    parser = ConfigParser()
    parser.read_string(settings)
    lists = [parser["options"]["install_requires"],
             *(parser["options.extras_require"][extra] for extra in extras)]
    own = parser["metadata"]["name"]
    pins = []
    for requirement in "\n".join(lists).split():
        if requirement.partition("[")[0] == own:
            continue  # another extra of the package, which the caller names too
        found = _BOUND.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{requirement} in setup.cfg must be written as name>=version")
        pins.append("==".join(found.groups()))
    return pins


if __name__ == "__main__":
    print("\n".join(oldest(SETTINGS.read_text("utf-8"), sys.argv[1:])))
