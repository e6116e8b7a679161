"""The arithmetic of sparsity, in NumPy: what is kept of a model, what is sent of a vector, and in how few bytes."""
