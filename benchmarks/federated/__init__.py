"""Which controller reaches a quality by a deadline, and at what cost: ours and its rivals, simulated."""
