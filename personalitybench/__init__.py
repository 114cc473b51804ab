"""PersonalityBench: compare methods that make language models show a personality.

Importing the package is cheap: no torch, transformers, datasets or lm-eval is loaded here.
"""

__version__ = "0.1.0"
