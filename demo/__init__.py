"""``make demo``: the whole retraining pipeline on this machine, followed live, with a report at the end."""
