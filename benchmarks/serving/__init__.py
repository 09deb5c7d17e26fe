"""Models under their objectives on real TensorFlow, against rivals, and what the gateway itself costs."""
