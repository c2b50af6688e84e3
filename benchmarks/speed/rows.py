"""Files of instruction rows in, the rows and their one prompt form out.

Every contender reads its prompts from here, TRL in its own environment too: so nothing but the standard library is
imported.
"""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

Row = dict[str, str]
ALPACA, BANKING = "alpaca-en", "banking77"
FILES = {ALPACA: Path(ALPACA, "alpaca_en_demo.json"), BANKING: Path(BANKING, "train.csv")}
ASKED = "Which banking intent is this?"


def read_rows(data: Path, name: str) -> list[Row]:
    """A set's rows as instruction, input and output, in the file's order."""
    path = data / FILES[name]
    if name == ALPACA:
        return list(json.loads(path.read_text("utf-8")))
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {"instruction": ASKED, "input": row["text"], "output": row["category"]} for row in csv.DictReader(stream)
        ]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows at equal distances: a file sorted by label gives many labels.

    >>> [row["output"] for row in spread([{"output": str(number)} for number in range(10)], 3)]
    ['0', '3', '6']
    """
    return list(rows[:: max(1, len(rows) // count)][:count])


def prompt_and_completion(row: Row) -> tuple[str, str]:
    """A row in the form that Chinese fine-tuning guides teach, cut where the model answers.

    >>> prompt_and_completion({"instruction": "Add.", "input": "1 2", "output": "3"})
    ('指令：Add.\\n输入：1 2\\n输出：', '3')
    """
    given = f"输入：{row['input']}\n" if row["input"] else ""
    return f"指令：{row['instruction']}\n{given}输出：", row["output"]


def real_tokens(row: Row, count: Callable[[str], int]) -> int:
    """Tokens of a row: prompt, completion and the stop token; `count` says how many tokens a text has.

    >>> real_tokens({"instruction": "Add.", "input": "", "output": "3"}, count=len)
    13
    """
    return sum(count(text) for text in prompt_and_completion(row)) + 1
