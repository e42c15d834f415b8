"""The configuration file: what it describes, and how it is changed."""
