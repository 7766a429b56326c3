"""What is asked: the catalogue of suites, their items, and the generators of those items. Imports nothing of ours."""
