"""Operation definitions: one class with all the rules of one operation.

An instance of a definition is the operation *with its attributes* (``Transpose(permutation=(1, 0))``); a node of a
graph or block is an `Operation` (`compiler.ir.core`), which refers to it. Definitions are frozen dataclasses and
interned: the same attributes give the same object, so comparing and hashing are by identity.
"""

from __future__ import annotations

import dataclasses
import inspect
import types as pytypes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform, get_type_hints
from weakref import WeakValueDictionary

from flambeau.compiler.diagnostics import TypeInferenceError
from flambeau.compiler.ir.types import Type

if TYPE_CHECKING:
    from flambeau.compiler.ir.core import Operation

#: Every concrete definition by its name, filled as classes are made.
REGISTRY: dict[str, type[OpDef]] = {}

#: Instances by their attributes, as long as somebody has them, and the last ones by what their class was called with.
_INTERNED: WeakValueDictionary[Any, OpDef] = WeakValueDictionary()
_RAW: dict[Any, OpDef] = {}
_REMEMBERED = 1 << 14


class _Interning(type):
    """Calling a definition's class returns the one instance that has these attributes."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raw: Any = (cls, args, *kwargs.items()) if kwargs else (cls, args)
        try:
            found = _RAW.get(raw)
        except TypeError:  # a list or an array among the attributes: normalised below
            raw, found = None, None
        if found is not None:
            return found
        instance = super().__call__(*args, **kwargs)
        key = (cls, *((f.name, type(v), v) for f, v in instance.attribute_items()))
        instance = _INTERNED.setdefault(key, instance)
        if raw is not None:
            if len(_RAW) >= _REMEMBERED:
                _RAW.clear()
            _RAW[raw] = instance
        return instance


@dataclass_transform(frozen_default=True, eq_default=False)
class OpDef(metaclass=_Interning):
    """Base of every operation's definition. Subclasses are frozen dataclasses without saying so."""

    #: The name in text, with its dialect: ``graph.add``, ``arith.addf``. Empty for abstract bases.
    name: ClassVar[str] = ""
    _fields: ClassVar[tuple[dataclasses.Field[Any], ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = inspect.get_annotations(cls).values()
        if any(not str(a).startswith("ClassVar") for a in own) or not dataclasses.is_dataclass(cls):
            # Only classes with attributes of their own, and without an `__init__` of their own: making dataclasses costs
            # more than all else in an import, and compiling their functions most of that.
            dataclasses.dataclass(init=False, eq=False, repr=False, match_args=False)(cls)
            cls._fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        if "name" not in cls.__dict__ or not cls.name:
            return
        if cls.name in REGISTRY and REGISTRY[cls.name].__qualname__ != cls.__qualname__:
            raise TypeError(f"two operations are called {cls.name}: {REGISTRY[cls.name]} and {cls}")
        if inspect.getdoc(cls) is None or cls.__doc__ is None:
            raise TypeError(f"{cls.name} needs a docstring: it becomes its reference page")
        REGISTRY[cls.name] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # What dataclass() would write for each class; instances are interned, so few are made.
        fields = self.attribute_fields()
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} attributes, got {len(args)}")
        given = {f.name: value for f, value in zip(fields, args, strict=False)}
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"{type(self).__name__}: {', '.join(sorted(twice))} given twice")
        given.update(kwargs)
        for field in fields:
            if field.name in given:
                value = given.pop(field.name)
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            elif field.default is not dataclasses.MISSING:
                value = field.default
            else:
                raise TypeError(f"{type(self).__name__} needs the attribute {field.name}")
            self.__dict__[field.name] = value
        if given:
            raise TypeError(f"{type(self).__name__} has no attribute {', '.join(given)}")
        self.__post_init__()

    def __setattr__(self, name: str, value: Any) -> None:
        # What dataclass(frozen=True) does, at a third of its price for every class: an attribute is set once.
        if name in self.__dict__:
            raise dataclasses.FrozenInstanceError(
                f"{type(self).__name__} is frozen: {name} cannot be changed"
            )
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"{type(self).__name__} is frozen: {name} cannot be deleted")

    def __post_init__(self) -> None:
        """Normalise attributes: lists to tuples, and numbers to the type that the annotation names."""
        for field, value in self.attribute_items():
            object.__setattr__(self, field.name, _normalised(value, field.type))

    @classmethod
    def attribute_fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        return cls._fields

    def attribute_items(self) -> Iterable[tuple[dataclasses.Field[Any], Any]]:
        return [(f, getattr(self, f.name)) for f in self.attribute_fields()]

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes by name."""
        return {f.name: v for f, v in self.attribute_items()}

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.attributes.items())
        return f"{type(self).__name__}({inside})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), tuple(v for _, v in self.attribute_items()))

    def infer(self, *operands: Type) -> Type | tuple[Type, ...]:
        """The result's type (a tuple for several, empty for none). Raises TypeInferenceError through `reject`."""
        raise NotImplementedError(f"{self.name} has no type inference")

    def verify(self, operation: Operation) -> None:
        """Rules beyond types: regions, terminators. Raises VerificationError."""

    def reject(self, rule: str, *, expected: object = None, actual: object = None) -> TypeInferenceError:
        """An error that says which operation, which rule, what was expected and what came; raise what it returns."""
        text = f"{self.name}: {rule}"
        if expected is not None:
            text += f"; expected {expected}"
        if actual is not None:
            text += f", got {actual}" if expected is not None else f"; got {actual}"
        return TypeInferenceError(text)


def _normalised(value: Any, annotation: Any) -> Any:
    if isinstance(value, list):
        value = tuple(_normalised(v, "") for v in value)
    if (
        annotation in ("int", int)
        and isinstance(value, bool | pytypes.NoneType) is False
        and hasattr(value, "__index__")
    ):
        return int(value)
    if annotation in ("float", float):
        return float(value)
    if annotation in ("bool", bool):
        return bool(value)
    return value


def _rebuild(cls: type[OpDef], values: tuple[Any, ...]) -> OpDef:
    return cls(*values)


def signature_hints(cls: type[OpDef]) -> dict[str, Any]:
    """Attribute names to their Python types, for the parser's checks and the documentation."""
    return {k: v for k, v in get_type_hints(cls).items() if k in {f.name for f in cls.attribute_fields()}}
