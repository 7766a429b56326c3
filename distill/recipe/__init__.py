"""Recipes: every budget, rate and seed that makes a student, and the YAML files that hold them."""
