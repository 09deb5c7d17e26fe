"""Many simulated models on many simulated cores, under ROMA's own policy code."""
