"""Scorers: each gives a number to every answer of a prompt, or says why it has none.

scorer.settings()                what its scores depend on, as JSON values
scorer.score(examples)           for each example one Score an answer, in their order
"""
