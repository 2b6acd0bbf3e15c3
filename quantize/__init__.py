"""Weight compression: schemes, codes, and the compressed-tensors writer."""
