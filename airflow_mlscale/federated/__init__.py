"""hyperFL: federated training reaches a quality within its limits, or says early that it cannot."""
