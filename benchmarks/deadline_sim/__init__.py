"""Deadline control in simulation: thousands of Spark applications that exist only as numbers, the real policy code."""
