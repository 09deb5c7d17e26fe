"""Floor 0: the mathematics of control.

Belongs here: laws that could be worked out on paper, as pure functions over frozen values.
Does not belong here: clocks, files, sockets, logging, settings of one engine, anything that imports
from another floor.
"""
