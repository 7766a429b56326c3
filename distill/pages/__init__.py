"""What a person reads of a distillation: report, model cards, ablation tables."""
