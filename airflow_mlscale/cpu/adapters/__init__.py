"""Adapters of the CPU-share port: cgroup v1, cgroup v2, observe-only, the lease client of the host agent."""
