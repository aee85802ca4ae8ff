"""The QLoRA trainer that runs inside a job. Imports nothing heavy: the launcher reads `trainer.config`."""
