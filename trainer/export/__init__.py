"""What a run's result becomes: a merged checkpoint in one of two layouts, an adapter for servers, a GGUF file."""
