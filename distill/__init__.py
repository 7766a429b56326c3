"""How students are made: architectures, layer selection, stages, recipes. A guest of the harness.

Importing this package imports nothing else and registers nothing: `distill.students.hybrid.register` does, when asked.
"""
