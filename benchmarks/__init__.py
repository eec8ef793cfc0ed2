"""fastcam against the package grad-cam and against the model's own forward pass: `python -m benchmarks`."""
