"""The screen: every tunnel as it is now, and keys for what can be done about it. Needs Textual (extra `ui`)."""
