"""All-but-One: one LoRA adapter for each request on the U-Net."""
