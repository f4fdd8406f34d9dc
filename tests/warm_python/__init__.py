"""An interpreter for tests that has imported torch, Lightning and the like before it is started.

Tests start some hundred commands, and each would take a core five to nine seconds for the imports
of other people's packages alone. `start` runs servers that have made these imports and names an
executable that has one of them fork: arguments, folder, environment, open files, limits and exit
are those of the executable, signals reach the process that does the work, and our own modules are
imported by it. What is not safe to be shared is started in the ordinary way, see
`warm_python.client`. Two servers, so that not all processes hash strings alike.
"""

from warm_python.client import COLD
from warm_python.start import REAL, SERVERS, VARIABLE, WarmPython, family, start

__all__ = ["COLD", "REAL", "SERVERS", "VARIABLE", "WarmPython", "family", "start"]
