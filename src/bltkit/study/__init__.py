"""Studies: what patching does to a text, what a model costs, how it scales; and the pictures of it."""
