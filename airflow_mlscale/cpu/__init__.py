"""Floor 1: CPU shares for groups of processes: the port, its adapters, and the host agent that arbitrates.

Does not belong here: why a group needs a share (the engines know), and anything of Airflow.
"""
