"""The questions of the miniature suite and the generator that makes them from a seed.

`python -m suites.miniature` writes the bundled files again. Standard library only.
"""
