"""What other programs' files say of tunnels, in holdfast's terms. Text in, tunnels and remarks out: no I/O."""
