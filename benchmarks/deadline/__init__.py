"""Deadlines on real Spark: ours against no control, constant quotas, dynamic allocation and the published policy."""
