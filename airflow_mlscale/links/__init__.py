"""Buttons on a task instance that lead to an engine's own pages."""
