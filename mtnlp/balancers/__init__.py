"""How several losses become one update: one file per balancer. `balancers.get("pcgrad")` is its class."""

from mtnlp.registry import Registry

_registry = Registry(__name__, "balancer")
names, get, register, summary = _registry.names, _registry.get, _registry.register, _registry.summary
