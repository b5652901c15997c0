"""The server: a scheduler that owns the model in a process of its own, and HTTP in front of it.

A request's life is three words: admit, step, deliver. Importing this package imports neither FastAPI nor torch.
"""
