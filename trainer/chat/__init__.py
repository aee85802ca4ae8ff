"""Talking with a model: `launch chat` and `launch sample`."""
