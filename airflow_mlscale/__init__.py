"""Machine-learning services that meet their promises, driven from Apache Airflow."""

__version__ = "0.1.0"
