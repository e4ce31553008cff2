"""A finished run becomes a model on the Hub: weights, code, results, card."""
