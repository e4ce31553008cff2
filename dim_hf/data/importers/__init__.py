"""Reads the field's layouts and writes each as one manifest."""
