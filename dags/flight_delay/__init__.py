"""The parts of the flight-delay pipeline that run outside Airflow: Spark job, site code, replay client."""
