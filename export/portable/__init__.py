"""A training graph of standard ONNX operators, which any stock onnxruntime runs."""
