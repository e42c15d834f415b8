"""The per-user background process that owns links and tunnels."""
