"""From run directories to numbers and verdicts. Needs numpy and pandas, never torch."""
