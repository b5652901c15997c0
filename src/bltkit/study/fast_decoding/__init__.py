"""The study `fast-decoding`: what drafting, verification and block diffusion gain in seconds, and what they cost."""
