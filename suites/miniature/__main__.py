"""`python -m suites.miniature`: write the miniature items and their settings again, the same bytes each time."""

from __future__ import annotations

from suites.miniature.catalogue import write_files

if __name__ == "__main__":
    for path in write_files():
        print(path)
