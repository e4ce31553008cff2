"""Batched views, box mixing and amplitude mixing of images and volumes, with every draw made from a seed a sample."""
