"""What is asked and what was answered: suites of prompts with references in, answers with their measurements out."""

from pydantic import Field

from tasks.artifacts import Value
from tasks.evaluation.segmentation import cjk_share


class SuiteRow(Value):
    """One prompt with the answer it should get."""

    id: str
    messages: tuple[dict[str, str], ...] = Field(description="The prompt's chat turns, each with role and content.")
    reference: str
    columns: dict[str, str] = Field({}, description="Kept from the source, to score slices by.")

    @property
    def prompt(self) -> str:
        """The prompt as a reader wants to see it: a lone user turn as it is, several turns with their roles."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages)

    @property
    def language(self) -> str:
        """`zh` or `en`, by what the user wrote; a system message is ours and says nothing about the row."""
        asked = " ".join(turn["content"] for turn in self.messages if turn["role"] == "user")
        return "zh" if cjk_share(asked or self.prompt) >= 0.4 else "en"


class Suite(Value):
    """Rows that every model answers."""

    name: str
    rows: tuple[SuiteRow, ...]


class Answer(Value):
    """What a model wrote for one row, and how likely it found the reference."""

    text: str
    tokens: int = Field(description="Tokens generated.")
    stopped: bool = Field(description="The model ended the answer by itself, before the longest allowed.")
    nll: float | None = Field(None, description="Negative log likelihood of the reference's tokens, summed, in nats.")
    reference_tokens: int = 0
