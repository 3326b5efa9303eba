"""How often each task is drawn: one file per sampler, torch-free. `samplers.get("uniform")` is its class."""

from mtnlp.registry import Registry

_registry = Registry(__name__, "sampler")
names, get, register, summary = _registry.names, _registry.get, _registry.register, _registry.summary
