"""`preftune web`: a page to talk to models, look at runs and data, and start a training."""
