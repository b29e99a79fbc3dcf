"""Bodies of the protocol of decision models, as the client of ``SDK_VERSION`` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, FiniteFloat, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from laplora.decisions.thresholds import Decision
from laplora.prompts.questions import FEWEST_OPTIONS, MOST_OPTIONS, Content
from service.http.schemas.base import Answer, Probabilities, Probability, Strict
from service.http.schemas.predict import UncertaintyParts

#: The version of typesafe-sdk whose shapes these are.
SDK_VERSION: Final = "0.7.5"
#: Names of ``model`` that stand for whichever loaded artifact answers a question.
ALIASES: Final = frozenset({"jev-latest"})

_CONTENT = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array"}]}
Text = Annotated[Content, WithJsonSchema(_CONTENT)]
_INSTRUCTIONS = Field(None, description="The question, word for word as the artifact has it.", examples=["Is it spam?"])


class ChoiceQuestion(Strict):
    """Which of the options?"""

    type: Literal["choice"] = Field(description="Always choice.", examples=["choice"])
    instructions: Text | None = _INSTRUCTIONS
    criteria: dict[str, Text | None] = Field(
        min_length=FEWEST_OPTIONS, max_length=MOST_OPTIONS, examples=[{"calm": "polite", "angry": "hostile"}]
    )
    """By option its description, or null. An artifact of multiple choice takes any options, others their own."""


class NoulCriteria(Strict):
    """The meanings of yes and no."""

    true: Text | None = Field(None, description="What counts as yes, or null.", examples=["advertising"])
    false: Text | None = Field(None, description="What counts as no, or null.", examples=[None])


class NoulQuestion(Strict):
    """Yes or no?"""

    type: Literal["noul"] = Field(description="Always noul.", examples=["noul"])
    instructions: Text | None = _INSTRUCTIONS
    criteria: NoulCriteria | None = Field(None, description="What counts as yes and as no; null: nothing is said.")


class ScoreQuestion(Strict):
    """How much?"""

    type: Literal["score"] = Field(description="Always score.", examples=["score"])
    instructions: Text | None = _INSTRUCTIONS
    criteria: list[Text] = Field(min_length=FEWEST_OPTIONS, max_length=MOST_OPTIONS, examples=[["calm", "angry"]])
    """Descriptions of the levels, from 0 on."""


AskedQuestion = Annotated[ChoiceQuestion | NoulQuestion | ScoreQuestion, Field(discriminator="type")]


class SystemOneRequest(Strict):
    """Questions about one state. Fields that are not listed here are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, max_length=256, examples=["jev-latest"])
    """Name of the loaded artifact that answers; jev-latest, or unset: of each question the first that answers it."""
    state: Text = Field(examples=["What is a hash table?"])
    """The content of all questions: an object of the artifact's fields, or the text of its only one; or as the artifact
    declares. Values that are no texts are read as JSON in one line, keys sorted.
    """
    questions: dict[Annotated[str, Field(min_length=1)], AskedQuestion] = Field(min_length=1)
    """Questions by an id of yours, at most max_inputs (413 above). Each is that of a loaded artifact, word for word:
    GET /v1/models lists them.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_assets(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("assets") is not None:
            raise PydanticCustomError("unsupported", "assets are not supported: only text is classified")
        return value


class SystemOneDetails(Answer):
    """laplora's part of an answer. Names of options are those of probabilities; of a noul, true and false."""

    artifact: str = Field(description="Name of the artifact that answered.", examples=["fields-smollm2"])
    digest: str = Field(description="Hash of its content.", examples=["sha256:2c26b46b68ffc68f"])
    decision: Decision = Field(description="Use the answer, or show it to a person.", examples=["review"])
    decision_reason: str = Field(examples=["0.82 is below 0.91, the threshold for a 5 % error rate"])
    """Why, in one sentence with figures: probabilities, of more than two labels entropies, nats."""
    prediction_set: list[str] = Field(description="Conformal set of options.", examples=[["positive"]])
    flags: list[str] = Field(examples=[["high_epistemic"]])
    """Why the answer deserves a look: the flags of POST /predict, and more_options, of a question with more options
    than a row of the fit had.
    """
    probs_std: Probabilities | None = Field(examples=[{"negative": 0.11, "positive": 0.11}])
    """Standard deviation of each probability over the weights; null where there is none."""
    uncertainty: UncertaintyParts | None = Field(description="Decomposed uncertainty, nats; null where there is none.")
    uncorrected: Probabilities | None = Field(None, examples=[None])
    """By option the probability that another model gave, if the artifact corrects one; else null."""
    prediction_id: str | None = Field(examples=["gJ3mGpXbHk1TzqJm0yQe2A"])
    """The id of this answer for POST /feedback, which takes the artifact's labels; null where the server keeps none."""


class SystemOnePassed(Answer):
    """laplora's part of another model's answer that passes as it came: no artifact was fitted to the question."""

    model: str = Field(description="Name that the other model gives itself.", examples=["jev-1.13.0"])
    decision: Literal["review"] = Field("review", description="Always review.", examples=["review"])
    decision_reason: str = Field(examples=["no artifact was fitted to this question"])
    """Why, in one sentence."""
    flags: list[str] = Field(["not_fitted"], description="Always not_fitted.", examples=[["not_fitted"]])


class NoulAnswer(Answer):
    """Yes or no."""

    type: Literal["noul"] = Field("noul", description="Always noul.", examples=["noul"])
    noul: Probability = Field(description="Probability of yes.", examples=[0.98])
    x_laplora: SystemOneDetails | SystemOnePassed = Field(description="The fields of laplora.")


class ChoiceAnswer(Answer):
    """One of the options."""

    type: Literal["choice"] = Field("choice", description="Always choice.", examples=["choice"])
    choice: str = Field(description="The most probable option.", examples=["positive"])
    probabilities: Probabilities = Field(examples=[{"negative": 0.18, "positive": 0.82}])
    """By option its probability."""
    confidence: Probability = Field(examples=[0.64])
    """(m - 1/n) / (1 - 1/n), 0 to 1, of n options and the largest probability m."""
    x_laplora: SystemOneDetails | SystemOnePassed = Field(description="The fields of laplora.")


class ScoreAnswer(Answer):
    """A level."""

    type: Literal["score"] = Field("score", description="Always score.", examples=["score"])
    score: FiniteFloat = Field(examples=[1.7])
    """The expected level, a number of no unit: each level times its probability, summed."""
    legend: dict[str, Annotated[Any, WithJsonSchema(_CONTENT)]] = Field(examples=[{"0": "calm", "1": "angry"}])
    """By level its description, as sent."""
    probabilities: Probabilities = Field(description="By level its probability.", examples=[{"0": 0.3, "1": 0.7}])
    confidence: Probability = Field(examples=[0.4])
    """As of a choice, 0 to 1."""
    x_laplora: SystemOneDetails | SystemOnePassed = Field(description="The fields of laplora.")


class SystemOneUsage(Answer):
    """Tokens."""

    input_tokens: int = Field(description="Tokens of all prompts, one for each question.", examples=[61])
    output_tokens: int = Field(0, description="Always 0 tokens: nothing is generated.", examples=[0])


class SystemOneResponse(Answer):
    """An answer to each question."""

    model: str = Field(description="The artifact that answered; of several, jev-latest.", examples=["fields-smollm2"])
    answers: dict[str, NoulAnswer | ChoiceAnswer | ScoreAnswer] = Field(description="By the question's id.")
    usage: SystemOneUsage = Field(description="Tokens.")


class SystemOneModel(Answer):
    """A name that POST /v1/systemone takes as model."""

    name: str = Field(description="The artifact's name, or jev-latest.", examples=["fields-smollm2"])
    description: str = Field(description="What it answers.", examples=["choice: Is it spam?"])
    release_date: str = Field(description="The day of the artifact, YYYY-MM-DD.", examples=["2026-12-01"])


class SystemOneModels(Answer):
    """The loaded artifacts, the active one first, and jev-latest: whichever answers a question."""

    models: list[SystemOneModel] = Field(description="One for each name.")


class SystemOneProblem(Answer):
    """One thing that is wrong with a body."""

    loc: list[str] = Field(description="Where it is.", examples=[["body", "state"]])
    msg: str = Field(description="The expected and the given value, and what to do.", examples=["Field required"])
    type: str = Field(description="The error's code: it never changes.", examples=["invalid_request"])


class SystemOneFailure(Answer):
    """Why there is no answer."""

    error_type: str = Field(examples=["queue_full"])
    """The error's code: it never changes. Without a valid API key authentication_error."""
    message: str = Field(description="What happened, and what to do.", examples=["the queue is full"])


class SystemOneErrorResponse(Answer):
    """The body of an error: of status 422 a list, else one object."""

    detail: list[SystemOneProblem] | SystemOneFailure = Field(description="What is wrong.")
