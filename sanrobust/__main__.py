"""``python -m sanrobust`` is the command ``sanrobust``."""

from sanrobust.cli import main

if __name__ == "__main__":
    main(prog_name="sanrobust")
