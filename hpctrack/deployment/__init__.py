"""Models taken elsewhere: stages of a pipeline, and the influencer model, as TorchScript and ONNX for ACTS."""
