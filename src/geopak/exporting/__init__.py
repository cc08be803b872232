"""A trained model taken elsewhere: ONNX, and what that costs in smaller numbers."""
