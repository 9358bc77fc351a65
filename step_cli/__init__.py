"""step-cli: take a model to N:M structured sparsity with STEP, and prove it."""
