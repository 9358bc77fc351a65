"""Methods that look at activations: samples go through the model block by block."""
