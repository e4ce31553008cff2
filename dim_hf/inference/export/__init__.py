"""Models as graphs that run without PyTorch's Python, or without PyTorch: ONNX and torch.export."""
