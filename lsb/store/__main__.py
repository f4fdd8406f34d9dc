"""Entry point of `python -m lsb.store verify|stat|merge|drop`."""

import sys

from lsb.store.commands import main

if __name__ == "__main__":
    sys.exit(main())
