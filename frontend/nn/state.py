"""State dictionaries of modules: saving and loading parameters, buffers and what else a module has."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from flambeau import evaluation
from flambeau.autograd import no_grad
from flambeau.handles import RemovableHandle
from flambeau.nn.parameter import Parameter
from flambeau.tensor import Tensor


class IncompatibleKeys(namedtuple("IncompatibleKeys", ["missing_keys", "unexpected_keys"])):
    """What `load_state_dict` did not find, and what it did not know."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class Stateful:
    """The part of a `Module` that is about its state."""

    _parameters: Any
    _buffers: Any
    _modules: Any
    _non_persistent_buffers_set: set[str]
    _state_dict_hooks: dict[int, Any]
    _state_dict_pre_hooks: dict[int, Any]
    _load_pre_hooks: dict[int, Any]
    _load_post_hooks: dict[int, Any]

    def get_extra_state(self) -> Any:
        """Further state to save; a subclass that has some defines this and `set_extra_state`."""
        raise NotImplementedError

    def set_extra_state(self, state: Any) -> None:
        """Take what `get_extra_state` gave."""
        raise NotImplementedError

    def _has_extra_state(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(Stateful, name)

    def register_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Before `state_dict`: ``hook(module, prefix, keep_vars)``."""
        return RemovableHandle(self._state_dict_pre_hooks, hook)

    def register_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """After `state_dict`: ``hook(module, state_dict, prefix, local_metadata)``."""
        return RemovableHandle(self._state_dict_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Before loading: ``hook(module, state_dict, prefix, metadata, strict, missing, unexpected, errors)``."""
        return RemovableHandle(self._load_pre_hooks, hook)

    def register_load_state_dict_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """After loading: ``hook(module, incompatible_keys)``."""
        return RemovableHandle(self._load_post_hooks, hook)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, parameter in self._parameters.items():
            if parameter is not None:
                destination[prefix + name] = parameter if keep_vars else parameter.detach()
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._non_persistent_buffers_set:
                destination[prefix + name] = buffer if keep_vars else buffer.detach()
        if self._has_extra_state("get_extra_state"):
            destination[prefix + "_extra_state"] = self.get_extra_state()

    def state_dict(
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """All parameters and persistent buffers by dotted name; they share memory with the module's."""
        found: dict[str, Any] = OrderedDict() if destination is None else destination
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(found, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=found, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        for hook in self._state_dict_hooks.values():
            hook(self, found, prefix, {})
        return found

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, strict: bool, missing: list[str], unexpected: list[str],
        errors: list[str], assign: bool,
    ) -> None:  # fmt: skip
        for hook in self._load_pre_hooks.values():
            hook(self, state_dict, prefix, {}, strict, missing, unexpected, errors)
        own = {n: t for n, t in self._parameters.items() if t is not None}
        own |= {
            n: t
            for n, t in self._buffers.items()
            if t is not None and n not in self._non_persistent_buffers_set
        }
        for name, target in own.items():
            key = prefix + name
            if key not in state_dict:
                missing.append(key)
                continue
            source = state_dict[key]
            if not isinstance(source, Tensor):
                errors.append(
                    f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like object from '
                    f"checkpoint but received {type(source)}"
                )
                continue
            if tuple(source.shape) != tuple(target.shape):
                errors.append(
                    f"size mismatch for {key}: copying a param with shape {source.shape} from checkpoint, "
                    f"the shape in current model is {target.shape}."
                )
                continue
            with no_grad():
                if not assign:
                    target.copy_(source)
                elif name in self._parameters:
                    keep = (
                        source if isinstance(source, Parameter) else Parameter(source, target.requires_grad)
                    )
                    self._parameters[name] = keep
                else:
                    self._buffers[name] = source
        extra = prefix + "_extra_state"
        if self._has_extra_state("set_extra_state"):
            if extra in state_dict:
                self.set_extra_state(state_dict[extra])
            else:
                missing.append(extra)
        for key in state_dict:
            if not key.startswith(prefix) or key == extra:
                continue
            first, dot, _ = key[len(prefix) :].partition(".")
            if first not in (self._modules if dot else own):
                unexpected.append(key)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Copy a state dict in (or, with `assign`, take its tensors). RuntimeError for what does not fit."""
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        table = OrderedDict(state_dict)

        def load(module: Stateful, prefix: str) -> None:
            module._load_from_state_dict(table, prefix, strict, missing, unexpected, errors, assign)
            for name, child in module._modules.items():
                if child is not None:
                    load(child, f"{prefix}{name}.")
            result = IncompatibleKeys(missing, unexpected)
            for hook in module._load_post_hooks.values():
                hook(module, result)

        load(self, "")
        if evaluation.state.trace is None:
            evaluation.sync()
        if strict:
            if unexpected:
                listed = ", ".join(f'"{k}"' for k in unexpected)
                errors.insert(0, f"Unexpected key(s) in state_dict: {listed}. ")
            if missing:
                listed = ", ".join(f'"{k}"' for k in missing)
                errors.insert(0, f"Missing key(s) in state_dict: {listed}. ")
        if errors:
            joined = "\n\t".join(errors)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{joined}")
        return IncompatibleKeys(missing, unexpected)
