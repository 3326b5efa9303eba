"""How tasks share a backbone: one file per strategy. `strategies.get("lora-per-task")` is its class."""

from mtnlp.registry import Registry

_registry = Registry(__name__, "strategy")
names, get, register, summary = _registry.names, _registry.get, _registry.register, _registry.summary
