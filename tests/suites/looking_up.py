"""An answerer that searches the prompt: what a checkpoint with a perfect memory would reply to RULER's tasks."""

from __future__ import annotations

import re
from collections import Counter


def look_up(prompt: str) -> list[str]:
    """The answers to a prompt of RULER's, by search alone. Raises ValueError for another prompt."""
    last = prompt[prompt.rindex("\n") :]
    if asked := re.search(r"magic \w+ for ([^?]+) mentioned in the provided text\?", last):
        keys = re.split(r", and |, ", asked[1])
        return [value for key in keys for value in re.findall(rf" for {re.escape(key)} is: (\S+)\.", prompt)]
    if asked := re.search(r"assigned the value (\d+) in the text above\.", last):
        held = {name for name, value in re.findall(r"VAR (\w+) = (\d+)", prompt) if value == asked[1]}
        for name, source in re.findall(r"VAR (\w+) = VAR (\w+)", prompt):
            held |= {name} if source in held else set()
        return sorted(held)
    if "10 most common words" in prompt:
        text = prompt[prompt.rindex("Below is a numbered list") :].split("\n")[1]
        return [word for word, _ in Counter(re.findall(r"\d+\. (\S+)", text)).most_common(10)]
    if "coded words." in prompt:
        words = prompt.split("coded words. ", 1)[1].split("\nQuestion:")[0].split()
        return [word for word, _ in Counter(word for word in words if word != "...").most_common(3)]
    raise ValueError("not a prompt of RULER's")
