"""A gap in a line of code: what stands there follows from the lines around it."""

from random import Random

from engine.tiny.tasks.lexicon import FIELDS
from engine.tiny.tasks.task import Task, user

# Each is (code with one `____`, answer); {a}, {b}, {c} are different identifiers.
PATTERNS = (
    ("def {c}({a}, {b}):\n    return {a} * ____", "{b}"),
    ("def {c}({a}, {b}):\n    return ____ - {a}", "{b}"),
    ("def {c}({a}, {b}):\n    if {a} > {b}:\n        return {a}\n    return ____", "{b}"),
    ("{a}, {b} = {b}, ____", "{a}"),
    ("{c} = {a}\n{a} = {b}\n{b} = ____", "{c}"),
    ("{a} = 0\nfor {b} in {c}:\n    {a} += ____", "{b}"),
    ("for {a} in range({b}):\n    {c}.append(____)", "{a}"),
    ("for {a} in {b}:\n    if {a} > {c}:\n        ____ = {a}", "{c}"),
    ("while {a} < {b}:\n    {c} += {a}\n    ____ += 1", "{a}"),
    ("with open({a}) as {b}:\n    {c} = ____.read()", "{b}"),
    ("{c} = max({a}, {b})\nprint(____)", "{c}"),
    ("class {c}:\n    def set(self, {a}, {b}):\n        self.{b} = {b}\n        self.{a} = ____", "{a}"),
    ("{c} = {a} + {b}\nassert {c} - {b} == ____", "{a}"),
    ("{c} = [{a} for ____ in {b}]", "{a}"),
    ("{c} = {{{a}: {b} for {a}, ____ in pairs}}", "{b}"),
)


def draw(rng: Random, size: float) -> Task:
    """One of the patterns, with identifiers drawn for it; the answer is one identifier."""
    a, b, c = rng.sample(FIELDS, 3)
    code, answer = rng.choice(PATTERNS)
    code = code.format(a=a, b=b, c=c)
    return Task("gap", [user(f"What fills the gap?\n{code}")], answer.format(a=a, b=b, c=c), code)
