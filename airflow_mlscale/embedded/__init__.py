"""Everything on one machine: ``mlscale up`` starts the host agent and the three engines as local services.

Belongs here: the order in which services start and end, and the addresses that a DAG author needs.
Does not belong here: how one engine is started; that is the engine's own ``up`` command.
"""
