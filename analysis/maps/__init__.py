"""Attention maps that can be zoomed: q, k and L of a prompt are kept, and any window of a map is made from them."""
