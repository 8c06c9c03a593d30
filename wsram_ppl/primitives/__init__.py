"""What Pyro programs are written with: effect handlers, distributions, layers, glimpses."""
