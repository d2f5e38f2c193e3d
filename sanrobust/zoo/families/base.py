"""What a family of models is: its networks by name, their options, and how each is built; no torch.

A family is one `Family` in one file. `sanrobust.zoo.families.catalog` lists ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, get_type_hints

from sanrobust.registry import closest

if TYPE_CHECKING:
    from torch import nn

    from sanrobust.zoo.entry import Entry

WIDTH = 64
"""Channels of the stem in the paper's networks; `width` scales all layers with it."""
SMALL_SHARE = 8
"""The form for small images has this part of the width of the form for ImageNet."""
SMALL_SIDE = 32

_MOST_WIDTH = 8 * WIDTH
_NUMBER = re.compile(r"[+-]?[0-9]{1,99}(\.[0-9]{0,99})?")
_NAME = re.compile(r"[a-z0-9][a-z0-9_+-]*")


@dataclass(frozen=True)
class Option:
    """One option of an architecture.

    Attributes:
        name: what stands before the ``=``.
        values: legal values; of each item where the value is a list.
        default: the value that the canonical spelling leaves out; None where it depends on the
            form.
        items: how many values, joined by ``-``.
        unit: what numbers are multiples of; 0 for values to be listed one by one.
    """

    name: str
    values: tuple[str, ...]
    default: str | None = None
    items: int = 1
    unit: int = 0

    @property
    def legal(self) -> str:
        """The legal values in words."""
        if self.unit:
            return f"a multiple of {self.unit} from {self.values[0]} to {self.values[-1]}"
        listed = ", ".join(self.values)
        return listed if self.items == 1 else f"{self.items} of {listed}, joined by -"

    def read(self, text: str) -> str | None:
        """Return the canonical spelling of the value ``text``; None when it is illegal."""
        folded = {value.casefold(): value for value in self.values}
        items = text.split("-") if self.items > 1 else [text]
        found = [folded.get(item.strip().casefold()) for item in items]
        known = [item for item in found if item is not None]
        return "-".join(known) if len(known) == len(found) == self.items else None

    def nearest(self, text: str) -> str | None:
        """Return the legal value that an illegal ``text`` may have meant; None without a guess."""
        if not self.unit:
            return closest(text, self.values) if self.items == 1 else None
        if _NUMBER.fullmatch(text) is None:
            return None
        wanted = int(float(text))
        return min(self.values, key=lambda value: abs(int(value) - wanted))


def width_option(unit: int) -> Option:
    """Return the option ``width``, in multiples of ``unit``; small forms have an eighth of it."""
    values = tuple(str(width) for width in range(unit, _MOST_WIDTH + 1, unit))
    return Option("width", values, str(WIDTH), unit=unit)


@dataclass(frozen=True)
class ModelName:
    """A name in its parts.

    Attributes:
        family: whose network it is.
        network: one of the family's.
        options: names and values in canonical order, defaults left out.
        tag: of the weights; None for an architecture alone.
    """

    family: Family[Any] = field(repr=False, compare=False)
    network: str
    options: tuple[tuple[str, str], ...] = ()
    tag: str | None = None

    @property
    def architecture(self) -> str:
        """Canonical spelling without the tag."""
        chosen = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.network}({chosen})" if chosen else self.network

    def value(self, option: str) -> str | None:
        """Return the value of ``option``: the one chosen, else its default."""
        defaults = {each.name: each.default for each in self.family.options(self.network)}
        return dict(self.options).get(option, defaults.get(option))

    def number(self, option: str, default: int = 0) -> int:
        """Return the value of ``option`` as a whole number; ``default`` where it has none."""
        value = self.value(option)
        return default if value is None else int(value)

    def __str__(self) -> str:
        return self.architecture if self.tag is None else f"{self.architecture}.{self.tag}"


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory a network takes.

    Attributes:
        channels: widths of its layers.
        sides: of its kernels and footprints, in pixels.
    """

    channels: tuple[int, ...]
    sides: tuple[int, ...]


class Architecture(Protocol):
    """The configuration of a network: a frozen dataclass, of a class that its family alone has.

    A field that has the name of an option holds that option's value, and one called ``design`` an
    `AttentionConfig`. Files hold the fields, so that they are numbers, texts and tuples of these.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    kind: ClassVar[str]
    """What files call the networks of the family."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks of each stage."""

    @property
    def num_classes(self) -> int:
        """Length of the logits; 1000 by default."""

    @property
    def sizes(self) -> Sizes:
        """What decides how large the network is."""

    def describe(self) -> str:
        """Return the network in words, without its attention operator."""

    def __hash__(self) -> int:
        """Equal configurations are one."""


def joined(numbers: Iterable[int]) -> str:
    """Return numbers as descriptions have them."""
    return ",".join(map(str, numbers))


Config = TypeVar("Config", bound=Architecture)
Made = TypeVar("Made", bound=Architecture, covariant=True)


class Form(Protocol[Made]):
    """How a name becomes a configuration."""

    def __call__(self, name: ModelName, *, small: bool) -> Made:
        """Return the form for 32x32 images when ``small``, else that for ImageNet.

        Every network without options has both. Raises UnknownNameError for options that have not.
        """


@dataclass(frozen=True)
class Family(Generic[Config]):
    """Everything about a family of models; importing it loads no torch.

    Attributes:
        config: the class of its configurations.
        networks: the names of its networks.
        options: returns those of a network, in canonical order.
        form: makes a configuration.
        build: makes the `nn.Module`, normalised images (B, 3, H, W) to logits (B, K), whose last
            layer is called ``fc``; it imports torch, and raises ModelError for a configuration
            that cannot be built.
        settle: makes of options typed the canonical ones where several ways of typing mean one
            network; raises UnknownNameError for those that exclude each other.
        free: the fields that weights from elsewhere may have otherwise than in either form, each
            with the options that settle it.
        smallest_input: shortest side in pixels that an image may have.
        published: returns entries of weights, beside those that every network has.
        listed: whether ``zoo list`` shows its networks' initial values; it does the paper's.
    """

    config: type[Config]
    networks: tuple[str, ...]
    form: Form[Config]
    build: Callable[[Config], nn.Module]
    options: Callable[[str], tuple[Option, ...]] = lambda network: ()
    settle: Callable[[Mapping[str, str]], Mapping[str, str]] = dict
    free: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"width": ("width",)})
    smallest_input: Callable[[Config], int] = lambda config: 1
    published: Callable[[], Iterable[Entry]] = tuple
    listed: bool = True

    @property
    def name(self) -> str:
        """What files call it."""
        return self.config.kind

    def require_sound(self) -> None:
        """Raise what is wrong with a family that somebody else wrote, as far as is seen here."""
        for name in (self.name, *self.networks):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} must be of small letters, digits, _, + and -")
        get_type_hints(self.config)
        for network in self.networks:
            self.options(network)
            for small in (False, True):
                made = replace(self.form(ModelName(self, network), small=small), num_classes=2)
                if type(made) is not self.config:
                    raise TypeError(f"the form of {network} must be a {self.config.__name__}")
                hash((made, made.layers, made.sizes, made.describe(), self.smallest_input(made)))
