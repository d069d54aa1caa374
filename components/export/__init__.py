"""The erased model in forms that other programs open: ONNX, LoRA, a diffusers folder."""
