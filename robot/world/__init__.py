"""World-action models: predicted frames and actions denoised together, each frame at a time of its own."""
