"""A trained model as others take it: one folder of safetensors with tokenizer, template and card, or one GGUF file."""
