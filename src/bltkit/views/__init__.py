"""Patches, costs and measurements as people see them: in a terminal, as pictures and as pages."""
