"""The kinds of nulls."""

from typing import Literal, get_args

NullName = Literal["repeat", "bfloat16", "int8", "halves", "finetune"]
NULLS: tuple[NullName, ...] = get_args(NullName)
