"""What waits in the triggerer. Triggers carry only serialisable arguments."""
