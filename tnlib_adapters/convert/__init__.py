"""Adapters out into other formats, and in from them: LoRA folders and plain checkpoints."""
