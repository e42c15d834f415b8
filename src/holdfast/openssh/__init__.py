"""Everything that knows OpenSSH: its multiplexing protocol, its command line, its words."""
