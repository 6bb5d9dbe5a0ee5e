"""The fast arithmetic of attention: one folder per operation, `reference.py` is the specification.

This room knows tensors only, never models. It is not Hugging Face's package of the same name.
"""
