"""`preftune report`: runs and evaluations as one page."""
