"""What would break a CUDA graph of the step, found without a GPU: a value that the host reads, a
tensor that is made elsewhere, and one that the step changes but `capture` would not put back."""
from collections.abc import Callable

import pytest
import torch
from drawn import AUGMENTED, make_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.config import Recipe
from common.models.build import NETWORKS
from common.training.loop import TrainStep

# PyTorch's own marks of operators whose result decides what the host does next.
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def storages(values: object) -> dict[int, Tensor]:
    """Key of the memory → a tensor that lies in it, of all tensors in a nest of lists and tuples;
    views have the same key."""
    tensors = [value for value in tree_leaves(values) if isinstance(value, Tensor)]
    return {tensor.untyped_storage()._cdata: tensor for tensor in tensors}


class Watch(TorchDispatchMode):
    """Raises at an operator that a graph cannot hold; `written` are the tensors older than the
    watch that others write to, by their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}  # held, so that no key is given twice
        self.written: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        reads = READS & set(func.tags) or func is torch.ops.aten.lift_fresh.default
        if func is torch.ops.aten.index.Tensor:  # a mask, not positions: as many as are true
            reads = any(index is not None and index.dtype == torch.bool for index in args[1])
        if reads:
            raise AssertionError(f"the host waits for, or brings, the values of {func}")
        result = func(*args, **kwargs)
        before = storages((args, kwargs))
        self.made |= {key: t for key, t in storages(result).items() if key not in before}
        names = [argument.name for argument in func._schema.arguments if argument.is_write]
        given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
        written = storages([given.get(name) for name in names])
        self.written |= {key: t for key, t in written.items() if key not in self.made}
        return result


def watched(name: str = "simple_cnn", optimizer: str = "sgd", amp: torch.dtype | None = None,
            plant: Callable[[TrainStep], object] = lambda step: None) -> list[torch.Size]:
    """Shapes of what the second step of an epoch changes and `capture` would not put back.

    Args:
        plant: puts a fault into the step.
    """
    # The stem that shrinks images: bf16 is slow on a CPU that lacks it.
    recipe = Recipe(model=name, stem="imagenet", optimizer=optimizer, batch_size=4, cutmix=0.5,
                    label_smoothing=0.1, **AUGMENTED)
    step = make_step(recipe, amp=amp)
    step.class_weights = torch.ones(10)
    plant(step)
    step.start_epoch(1, [1e-3] * step.steps)
    step()  # the first makes the optimiser's state
    # What names no device is made on another one, where nothing of the step can meet it.
    with Watch() as watch, torch.device("meta"):
        step()
    trained = storages(list(step.model.parameters()))
    assert trained.keys() <= watch.written.keys(), "the watch sees too little"
    own = [step.lr, step.cursor, step.losses, step.preds]  # of the epoch, begun anew by each
    known = storages([list(step.state()), own])
    return [t.shape for key, t in watch.written.items() if key not in known]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer, amp", [("sgd", None), ("adamw", torch.bfloat16)])
def test_a_step_reads_nothing_and_changes_only_what_a_capture_puts_back(name, optimizer, amp):
    assert watched(name, optimizer, amp) == []


@pytest.mark.parametrize("work", [
    lambda x: float(x.detach().sum()),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: torch._foreach_lerp_([x.detach() * 1], [x.detach()], x.detach().mean()),
    lambda x: x * torch.tensor([2.0], device="cpu"),
], ids=["float", "nonzero", "mask", "weight of a lerp", "from the host"])
def test_a_host_read_is_found(work):
    def plant(step: TrainStep) -> None:
        step.model.head.register_forward_pre_hook(lambda _, inputs: [work(*inputs)] and None)

    with pytest.raises(AssertionError, match="the host waits for"):
        watched(plant=plant)


def test_a_tensor_that_is_made_elsewhere_is_found():
    def plant(step: TrainStep) -> None:
        step.model.head.register_forward_pre_hook(lambda _, inputs: inputs[0] + torch.ones(512))

    with pytest.raises(RuntimeError, match="meta"):
        watched(plant=plant)


def test_a_tensor_that_a_capture_would_not_put_back_is_found():
    """An average of the head's weights, which every step moves."""
    def plant(step: TrainStep) -> None:
        head = step.model.head.weight
        average = head.detach().clone()
        step.optimizer.register_step_post_hook(lambda *_: average.lerp_(head.detach(), 0.1))

    assert watched(plant=plant) == [(10, 512)]
