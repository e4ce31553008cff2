"""Data sets on the Hub: pushed with a card, loaded from a pinned commit."""
