"""ROMA: a serving daemon in which every model has a response-time objective."""
