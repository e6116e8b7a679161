"""The [personal] table of agent.toml: a head of this device's own, which stays here."""

from dataclasses import dataclass

from edge_agent.personal.head import HeadRecipe


@dataclass(frozen=True, slots=True)
class PersonalSettings:
    """Off unless enabled. most_examples: of the device's training examples so many are drawn, which bounds memory and
    time: as many float32 as that times the features. report: whether the accuracies, and nothing else, go to the
    coordinator. deploy: whether the deployable graph is fetched and a model with this head kept beside it."""

    enabled: bool = False
    steps: int = 200
    batch_size: int = 32
    rate: float = 0.5
    weight_decay: float = 0.0
    most_examples: int = 2000
    report: bool = False
    deploy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 100_000:
            raise ValueError(f"steps: {self.steps} is outside 0..100000; 0 leaves the fleet's head")
        if not 1 <= self.batch_size <= 4096:
            raise ValueError(f"batch_size: {self.batch_size} is outside 1..4096")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} must be above 0 and at most 1, the largest that cannot overshoot")
        if not 0 <= self.weight_decay <= 1:
            raise ValueError(f"weight_decay: {self.weight_decay} is outside 0..1; 0 is none")
        if not 1 <= self.most_examples <= 100_000:
            raise ValueError(f"most_examples: {self.most_examples} is outside 1..100000")

    @property
    def recipe(self) -> HeadRecipe:
        return HeadRecipe(self.steps, self.batch_size, self.rate, self.weight_decay)

    @property
    def deployed(self) -> bool:
        return self.enabled and self.deploy


OFF = PersonalSettings()
