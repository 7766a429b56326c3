"""How students are made: architectures, layer selection, stages, recipes. A guest of the harness.

Importing this package imports nothing else and registers nothing. `MODEL_TYPES` is the table by which the harness's
loader finds the code of a checkpoint whose `model_type` is ours.
"""

MODEL_TYPES = {"plies_hybrid": "distill.students.hybrid:register"}
"""`model_type` of a checkpoint -> `module:function` that registers its classes with transformers' Auto classes."""
