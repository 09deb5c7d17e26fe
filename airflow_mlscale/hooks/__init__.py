"""What knows Airflow Connections: one hook for each engine."""
