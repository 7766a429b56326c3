"""What a recipe names and a file alone cannot tell: mixers, selectors, layers. Checked before anything is trained."""

from __future__ import annotations

from distill.recipe.settings import Recipe, TeacherConfig
from distill.selection import find_selector
from distill.students.convert import attention_layers, check_mixers, mixer_names


def check_names(recipe: Recipe) -> None:
    """Raises UsageError for an unknown mixer or selector, and for layers that a teacher from scratch will not have."""
    check_mixers(recipe.student)
    find_selector(recipe.student.selector)
    if isinstance(recipe.teacher, TeacherConfig):
        mixer_names(recipe.student, recipe.teacher.layers)
        attention_layers(recipe.student, recipe.teacher.layers)
