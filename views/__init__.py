"""One file per dashboard page, and what pages share: address, reading, tables, charts. Draws, never computes."""
