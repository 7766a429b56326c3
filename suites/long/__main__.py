"""`python -m suites.long`: write `suites/long.yaml`."""

from suites.long.catalogue import FILE, text

FILE.write_text(text(), encoding="utf-8")
print(FILE)
