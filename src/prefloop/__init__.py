"""prefloop: the whole preference loop (RLHF) in one program."""

__version__ = "0.1.0"
