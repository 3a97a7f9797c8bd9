"""What all sections of settings have in common."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Section(BaseModel):
    """A group of settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remove the line breaks of the source from descriptions: the command line shows them as help."""
        super().__pydantic_init_subclass__(**kwargs)
        for field in cls.model_fields.values():
            field.description = field.description and " ".join(field.description.split())


class Resources(Section):
    """What one stage takes of the cluster. Changes the speed, never the rows."""

    num_actors: int = Field(default=1, ge=1)
    """Most actors (or training workers) that run at the same time."""
    least_actors: int = Field(default=0, ge=0)
    """Fewest actors, from 1 to `num_actors`: the stage waits for them and always keeps them. More join while there is
    work and room, and leave afterwards. 0 means `num_actors`, so the number is fixed. Training ignores this."""
    num_gpus: float = Field(default=1.0, ge=0)
    """GPUs per actor; a fraction shares a GPU, and 0 runs on the CPU."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs per actor. An actor without a GPU uses as many torch threads."""
    batch_size: int = Field(default=16, ge=1)
    """Rows that an actor processes at a time."""

    @model_validator(mode="after")
    def _ordered(self) -> "Resources":
        if self.least_actors > self.num_actors:
            raise ValueError(
                f"least_actors is {self.least_actors}, but num_actors is {self.num_actors}: lower least_actors, or "
                "raise num_actors"
            )
        return self
