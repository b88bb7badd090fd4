"""What a plan says of each tensor of a model, drawn again; and ``redraw()``, which gives it in any dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import nn

from .backends import AUTO, BACKENDS, Choice
from .config.kept_plans import Held, KeptPlan, bound, fill_for
from .errors import InitRuntimeError, InitTypeError, check_module, if_path
from .execution.calls import new_scope, not_recording
from .execution.scope import Scope
from .naming import Prefix
from .plans import Call, Copy, Fill, Item, Plan, Replay, Strided, covered, is_structured, names_line
from .plans.lock_file import NUMBERS_OF_TORCH, geometry_of, live
from .shards.dtensor import is_sharded, like, local_part


def redraw(
    model: nn.Module, plan: Plan, *, dtype: torch.dtype | None = None, prefix: Prefix = ""
) -> dict[str, torch.Tensor]:
    """Returns the values that a plan says for a model's parameters, in any dtype: masters without a stored copy.

    A bfloat16 or float8 parameter that was initialized by the plan is its float32 value, rounded. The model is neither
    read nor changed: the values are those at the start, whatever training has made of them.

    Args:
        model: whose parameters count, with their devices, memory formats and placements on meshes.
        plan: of ``fastinit.plan`` or ``Plan.load``.
        dtype: of the values; None: each has the plan's own, which may be wider than the model's.
        prefix: as for ``initialize``.

    Returns:
        New tensors by the parameters' names, distributed like them; of parameters that the plan writes.

    Raises:
        RuntimeError: names or shapes do not fit; a parameter has values that a plan cannot give (torch's numbers,
            code, a checkpoint that is not here), or other numbers in that dtype (float64).
        TypeError: ``plan`` is none, or ``dtype`` is no floating-point dtype.

    Example:
        >>> import fastinit, torch
        >>> model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
        >>> plan = fastinit.plan(model, dict(type="Xavier", layer="Linear"), backend="cpp", seed=0)
        >>> report = fastinit.initialize(model, plan)
        >>> masters = fastinit.redraw(model, plan, dtype=torch.float32)
        >>> masters["weight"].dtype, torch.equal(masters["weight"].bfloat16(), model.weight)
        (torch.float32, True)
    """
    check_plan(plan, "redraw")
    check_module(model)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InitTypeError(f"dtype must be a floating-point dtype of torch, but got {dtype!r}")
    with not_recording(), torch.no_grad():
        return _redrawn(model, plan, dtype, prefix)


def _redrawn(model: nn.Module, plan: Plan, dtype: torch.dtype | None, prefix: Prefix) -> dict[str, torch.Tensor]:
    scope = new_scope(model, prefix=prefix, is_dry=True, is_offline=True)
    planned = PlannedValues(model, plan, scope, "redraw")
    parameters = set(scope.names.parameters().values())
    wanted = {name: here for name, here in planned.held.items() if here.name in parameters and name in planned.writers}
    why_not = {here.name: planned.why_not_redrawn(name, dtype) for name, here in wanted.items()}
    if left := [f"{name} ({reason})" for name, reason in why_not.items() if reason]:
        raise InitRuntimeError(f"redraw: {names_line('parameters have values that the plan cannot give', left)}")
    return {here.name: planned.made(name, here.tensor, dtype or planned.dtypes[name]) for name, here in wanted.items()}


def check_plan(plan: object, caller: str) -> None:
    """Raises TypeError unless ``plan`` is a plan, which comes behind the model."""
    if isinstance(plan, nn.Module):
        raise InitTypeError(
            f"{caller} needs a plan, but got {type(plan)}", hint=f": {caller}(model, plan), the model comes first"
        )
    if not isinstance(plan, Plan):
        raise InitTypeError(
            f"{caller} needs a plan, of fastinit.plan or Plan.load, but got {type(plan)}",
            hint=if_path(plan, ": fastinit.Plan.load(path) reads one from a file"),
        )


class PlannedValues:
    """What a plan says of the tensors of one model.

    Args:
        model: whose tensors are bound to the plan's names.
        plan: the plan.
        scope: of a dry call for the model.
        caller: the function that the user called.
    """

    def __init__(self, model: nn.Module, plan: Plan, scope: Scope, caller: str) -> None:
        self.plan = plan
        self.caller = caller
        self.vague: set[int] = set()
        """Copies (by id) that modules' own loading code does, which may write something else."""
        self.held: Mapping[str, Held] = bound(plan, model, scope.names, scope.prefix)
        self._kept = KeptPlan(plan)
        self._stored: dict[int, Mapping[str, torch.Tensor]] = {}
        """Copy (by id) -> the tensors in its file, by name in the model."""
        self._choice = Choice(AUTO)
        contracts = [each for each in plan.numbers.split(" and ") if each != NUMBERS_OF_TORCH]
        self._choice.need(contracts[0] if contracts else BACKENDS["cpp"].NUMBERS)
        self._why_not = {
            id(item): reason
            for at, (item, backend) in enumerate(zip(plan.items, plan.backends))
            if (reason := self._why_not_item(at, item, backend, model, scope))
        }
        self.writers: dict[str, list[Item]] = {}
        """Name in the plan -> what writes it, in order, from the last on that writes all of it."""
        self.dtypes: dict[str, torch.dtype] = {}
        """Name in the plan -> dtype in the plan."""
        self.calls: dict[str, str] = {}
        """Label of code that is called -> why the plan cannot tell what it writes."""
        for item in live(plan.items):
            if isinstance(item, Call):
                self.calls[f"call of {item.label}"] = self._why_not[id(item)]
            elif isinstance(item, Fill):
                self._note(item.name, item, plan.dtypes[item.tensor], is_whole=not item.is_part)
            else:
                for entry in item.entries:
                    self._note(entry.name, item, plan.dtypes[entry.tensor], is_whole=True)

    def _note(self, name: str, item: Item, dtype: torch.dtype, *, is_whole: bool) -> None:
        if name in self.held:
            self.dtypes[name] = dtype
            self.writers[name] = [item] if is_whole else [*self.writers.get(name, ()), item]

    def backend_on(self, device: torch.device) -> str:
        """Returns the contract backend that draws on a device.

        Raises:
            RuntimeError: none can.
        """
        name = self._choice.on(device)
        if (reason := BACKENDS[name].why_not(device)) is not None:
            raise InitRuntimeError(
                f"{self.caller}: no backend with the numbers of {self._choice.needed!r} runs: {reason}"
            )
        return name

    def why_not(self, name: str) -> str:
        """Returns why the plan cannot tell what is written under a name of it, "" if it can."""
        return next((self._why_not[id(item)] for item in self.writers[name] if id(item) in self._why_not), "")

    def why_not_redrawn(self, name: str, dtype: torch.dtype | None) -> str:
        """Returns why ``made`` cannot give all of a tensor in a dtype, "" if it can."""
        first, known = self.writers[name][0], self.dtypes[name]
        if isinstance(first, Fill) and first.is_part:
            return "only a part of it is written"
        is_other = dtype is not None and dtype != known and torch.float64 in (dtype, known)
        if is_other and any(isinstance(item, Fill) and item.is_drawn for item in self.writers[name]):
            return "float64 has other numbers"
        if _memory(self.held[name].tensor).is_meta:
            return "it has no memory"
        return self.why_not(name)

    def is_whole(self, name: str) -> bool:
        """Tells whether every element of a tensor is written, by its name in the plan."""
        items = self.writers[name]
        if not all(isinstance(item, Fill) and item.is_part for item in items):
            return True  # the first one writes all of it
        whole = Strided.whole(self.held[name].tensor.shape)
        return covered([geometry_of(item)[0] or whole for item in items if isinstance(item, Fill)], whole.numel)

    def simple(self, name: str) -> Fill | None:
        """Returns the fill of a tensor that is all of it, in order, each value by itself; None if it is no such."""
        first, *others = self.writers[name]
        if others or not isinstance(first, Fill):
            return None
        if is_structured(first.distribution) or geometry_of(first) != (None, None):
            return None
        return fill_for(first, self.held[name], 0, None)

    def made(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Returns a new tensor with what the plan says; elements that it does not write are those of the model.

        Args:
            name: in the plan.
            tensor: the model's, whose device, memory format and placement the new one has.
            dtype: of the new one.
        """
        here, items = self.held[name], self.writers[name]
        local = _memory(tensor).detach()
        memory = torch.empty_like(local, dtype=dtype)
        if isinstance(items[0], Fill) and items[0].is_part:
            memory.copy_(local)
        whole: torch.Tensor = like(tensor, memory) if is_sharded(tensor) else memory
        fills: list[Fill] = []
        for at, item in enumerate(items):
            if isinstance(item, Copy):
                whole.copy_(self._stored[id(item)][here.name])
            elif isinstance(item, Fill):
                fills.append(fill_for(item, Held(here.name, whole), at, None))
        self._run(fills)
        return whole

    def _run(self, fills: Sequence[Fill]) -> None:
        for own_seed, group in groupby(fills, key=lambda fill: fill.seed):
            seed = self.plan.seed if own_seed is None else own_seed
            few = list(group)
            BACKENDS[self.backend_on(few[0].tensor.device)].run(few, 0 if seed is None else seed)

    # --- what it cannot tell ------------------------------------------------------------------------------------------

    def _why_not_item(self, at: int, item: Item, backend: str, model: nn.Module, scope: Scope) -> str:
        """Returns why a plan cannot tell what an item writes, "" if it can."""
        if isinstance(item, Call):
            return "code that a plan cannot see into"
        if isinstance(item, Replay):
            return "computed by the model's own code"
        if isinstance(item, Copy):
            return self._why_not_copy(at, item, model, scope)
        if not item.is_drawn:
            return ""
        if NUMBERS_OF_TORCH in (backend or self.plan.numbers):
            return "torch's generators draw it, whose numbers depend on the order"
        return "" if self.plan.seed is not None or item.seed is not None else "the plan has no seed"

    def _why_not_copy(self, at: int, item: Copy, model: nn.Module, scope: Scope) -> str:
        try:
            copy = self._kept.copy(at, item, model, self.held, scope)
        except (AssertionError, OSError, RuntimeError) as error:
            return f"its checkpoint cannot be read here: {error}"
        if copy.unknown:
            return f"its checkpoint is not here: {copy.unknown}"
        kept, now = item.digests(), copy.digests()
        if any(now.get(self.held[name].name) != digest for name, digest in kept.items()):
            return f"{item.source} is not the checkpoint that the plan was made with"
        self._stored[id(item)] = copy.stored()
        if copy.runs_own_code:
            self.vague.add(id(item))
        return ""


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    return local_part(tensor) if is_sharded(tensor) else tensor
