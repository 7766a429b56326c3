"""lm-eval task files of our own, for suites that need what lm-eval does not have. Loaded by lm-eval, by path."""
