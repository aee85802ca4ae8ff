"""A job kind, a back end and a verb for launch."""
