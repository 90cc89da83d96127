"""A run's model in forms that others read: ONNX, and a plain torchvision state dict."""
