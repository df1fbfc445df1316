"""Exports and stores on the Hugging Face hub."""
