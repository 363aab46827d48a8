"""The embedded demo: a small bilingual corpus, its tokenizer and model, and the figures of a run."""
