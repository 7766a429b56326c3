"""The miniature suite's own items, made by a seeded generator: `python -m suites.miniature` writes them again.

Standard library only.
"""
