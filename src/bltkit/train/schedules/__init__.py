"""Learning-rate schedules (seam 4). A new schedule is its own file and a line in `SCHEDULES`."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from bltkit.config import nearest
from bltkit.registry import Registry
from bltkit.train.schedules.constant import ConstantSchedule
from bltkit.train.schedules.cosine import CosineSchedule
from bltkit.train.schedules.schedule import BaseSchedule
from bltkit.train.schedules.wsd import WsdSchedule

SCHEDULES = Registry(
    "schedule",
    BaseSchedule,
    "bltkit.train.schedules.cosine:CosineSchedule",
    "bltkit.train.schedules.wsd:WsdSchedule",
    "bltkit.train.schedules.constant:ConstantSchedule",
)
"""Every schedule by its kind."""


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in SCHEDULES:
        raise ValueError(f"unknown schedule {value!r}{nearest(value, list(SCHEDULES))}")
    return {"kind": value}


Schedule = Annotated[BaseSchedule, SCHEDULES, BeforeValidator(_from_name)]
"""Any schedule; as the type of a config field it reads `"cosine"` or `{kind = "wsd", decay_steps = 500}`."""

__all__ = ["SCHEDULES", "BaseSchedule", "ConstantSchedule", "CosineSchedule", "Schedule", "WsdSchedule"]
