"""Wake-sleep training of models that look: stochastic (hard) attention in Pyro."""

__version__ = "0.2.0"
