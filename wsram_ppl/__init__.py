"""Wake-sleep training of hard-attention models, and of any Pyro program with discrete latents."""

__version__ = "0.2.0"
