"""Notebook servers on the far side: what is run there to find, start and end them, and what the answers mean."""
