"""What a person reads: distillation report, model cards, tables of a grid, a plan."""
