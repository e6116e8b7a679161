"""The arithmetic of sparsity, in NumPy: what is sent of a vector, and how few bytes it takes."""
