"""lm-eval task files for what lm-eval itself does not have. lm-eval loads them by path."""
