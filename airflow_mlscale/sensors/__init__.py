"""What waits for a condition in a DAG."""
