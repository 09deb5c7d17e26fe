"""What the promises are worth: measured on real engines, and simulated where thousands of runs are needed."""
