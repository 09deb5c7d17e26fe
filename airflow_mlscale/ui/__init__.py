"""What appears in the Airflow UI: the plugin."""
