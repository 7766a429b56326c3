"""Items of a suite's own as a benchmark of evalscope's, registered when this is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
from evalscope.api.dataset import DatasetDict, MemoryDataset, Sample
from evalscope.api.metric import Score
from evalscope.api.registry import register_benchmark

from perplexity_lies.catalogue.items import read_items
from perplexity_lies.extract.base import EXACT_MATCH
from perplexity_lies.extract.pattern import Pattern

ITEMS_BENCHMARK = "plies_items"
"""Our own benchmark: items asked as they stand, judged by an exact match of what a pattern finds."""

WHOLE_REPLY = r"(?s)\A(.*)\Z"
"""What evalscope reads where an extractor of ours judges."""


@register_benchmark(
    BenchmarkMeta(
        name=ITEMS_BENCHMARK,
        pretty_name="items of a plies suite",
        description="Items asked as they stand, judged by an exact match of what a regex extracts.",
        dataset_id="",
        metric_list=[EXACT_MATCH],
        few_shot_num=0,
        eval_split="test",
        prompt_template="{question}",
        extra_params={"extract": {"type": "str", "description": "Regex whose first group is the answer.", "value": ""}},
    )
)
class ItemsAdapter(DefaultDataAdapter):
    """Items of a suite's own; the question is asked as it stands."""

    def load(self) -> tuple[DatasetDict, None]:
        path = Path(self.dataset_id)
        samples = [
            Sample(
                id=index,
                group_id=index,
                input=item.question,
                target=item.target,
                metadata={"id": item.id, "subject": item.subject},
            )
            for index, item in enumerate(read_items(path)[: self.limit])
        ]
        return DatasetDict({"default": MemoryDataset(samples, name=path.stem)}), None

    def extract_answer(self, prediction: str, task_state: Any) -> str:
        found = Pattern(self.extra_params["extract"], {}).search(prediction)
        return found.answer if found is not None else ""

    def match_score(self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any) -> Score:
        """To the letter: evalscope's own `exact_match` does not see case, in which two answers may differ."""
        value = {EXACT_MATCH: float(filtered_prediction == reference)}
        return Score(
            value=value,
            main_score_name=EXACT_MATCH,
            extracted_prediction=filtered_prediction,
            prediction=original_prediction,
        )
