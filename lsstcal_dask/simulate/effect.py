"""What every simulated effect has: a switch, and numbers a user can set."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Effect"]


class Effect(BaseModel):
    """Settings of one effect; its fields carry their unit in a comment and their source in the class's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    on: bool = True
    """Whether the effect takes part; without it the simulation is as if it did not exist."""
