"""The study `entropy`: does the entropy that places patches follow the information in a text?"""
