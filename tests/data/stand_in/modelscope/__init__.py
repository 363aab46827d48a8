"""Stands in for the package modelscope where it is not installed."""
