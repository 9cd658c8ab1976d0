"""Serving calls: coming up, saying so, and going down without losing a call."""
