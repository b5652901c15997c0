"""What a model costs, without running it: formulas of shapes, the ledger of a model, the plan of a training."""
