"""The lines of a check in their order; each rests on earlier ones alone."""

from __future__ import annotations

from sanrobust.registry import Registry
from sanrobust.validity.attack_lines import ATTACK_LINES
from sanrobust.validity.label_lines import LABEL_LINES, PIXEL_LINES
from sanrobust.validity.line import Line
from sanrobust.validity.model_lines import MODEL_LINES

LINES: Registry[Line] = Registry("line", listing="sanrobust check --list")
for _line in (*MODEL_LINES, *PIXEL_LINES, *LABEL_LINES, *ATTACK_LINES):
    LINES.add(_line.name, _line)
