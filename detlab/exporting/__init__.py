"""A run's model in forms that others read: ONNX, a program of `torch.export`, a plain torchvision state dict."""
