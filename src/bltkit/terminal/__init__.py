"""What people see while a program runs: messages, results and progress on the three standard streams.

Imports nothing of the package, so that every layer may report its progress in the same way.
"""
