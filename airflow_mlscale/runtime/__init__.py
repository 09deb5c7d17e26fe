"""Floor 1: what every controller runs on: the clock, the one periodic loop, the decision journal, local processes.

Does not belong here: anything that knows Spark, NVFlare, TensorFlow or Airflow.
"""
