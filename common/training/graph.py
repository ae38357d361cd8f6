"""CUDA graphs: a fixed list of launches, recorded once and then replayed by a single call.

A step of a small network is hundreds of kernels of a few microseconds each, and launching them one
by one from Python takes longer than computing them. What a capture asks of the work:

- the same kernels on the same addresses each time: inputs are copied into tensors that stay, and
  what changes (learning rate, order) lies in tensors, too;
- nothing read back by the host, no allocation outside of the graph's own memory;
- random numbers from generators that the graph knows, so that each replay draws new ones;
- a few runs beforehand on another stream, in which libraries choose algorithms and take workspace.
"""
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator
from torch.nn import Module

from common.errors import reason

TOLERANCE = 2e-2  # relative, between a captured loss and an eager one, as bf16 needs it
WARM_UPS = 3  # runs before a capture: cuDNN picks its algorithms, the optimiser makes its state

Work = Callable[[], object]


def compile_model(model: Module) -> None:
    """Have torch.compile work on the model's calls; what it cannot take runs eagerly."""
    torch._dynamo.config.suppress_errors = True
    # One process compiles every arm of an ablation, each in train and eval mode.
    torch._dynamo.config.recompile_limit = 64
    # Otherwise the second batch size it meets, the training step's, would become a symbol.
    model.compile(dynamic=False)


def capture(step: Any) -> Work:
    """A call that replays the step's graph, which was found to do what the step does eagerly.

    A capture that went wrong need not raise: a graph that misses a launch, or holds a value that
    should change, replays without a word. So two steps, of which the second sees what the first has
    updated, are made eagerly and by replay, from one state, and have to give the same loss.

    Args:
        step: a `TrainStep`; every tensor of its `state` is afterwards as it was before.

    Raises:
        RuntimeError: it cannot be captured, or its graph does something else.
    """
    # By identity: the graph will read and write these very tensors.
    before = {id(tensor): tensor.detach().clone() for tensor in step.state()}
    # One for each capture: PyTorch frees a stream's cuBLAS workspaces with any graph of it.
    stream, home = torch.cuda.Stream(), torch.cuda.current_stream()

    @torch.no_grad()
    def restore() -> None:
        """Put every value back in place, since a graph knows only addresses."""
        for tensor in step.state():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()  # what an optimiser made since then begins at zero

    try:
        stream.wait_stream(home)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step.trial(step)
        home.wait_stream(stream)
        restore()
        # Now, not after the capture, when the graph holds a second set of activations.
        eager = step.trial(step)
        restore()
        replay = _record(step, stream).replay
        replayed = step.trial(replay)
    finally:
        restore()
    if not math.isclose(eager, replayed, rel_tol=TOLERANCE):
        raise RuntimeError(f"replayed it gives {replayed:.5f}, eagerly {eager:.5f}")
    return replay


def _record(step: Any, stream: "torch.cuda.Stream") -> "torch.cuda.CUDAGraph":
    """The step captured on `stream`; each replay draws random numbers of its own."""
    graph, home = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    # Before 2.14 a graph knows only the default generator; later it finds those it meets.
    if torch.__version__ < "2.14":
        graph.register_generator_state(step.generator)
    try:
        # thread_local: a loader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    except RuntimeError:
        # A capture that fails leaves its stream current. Before torch 2.14 it also leaves every
        # generator believing that it is being captured, so that the next random number would
        # raise: each gets the state of a fresh one, and the next epoch seeds it.
        torch.cuda.set_stream(home)
        for generator in (step.generator, torch.cuda.default_generators[home.device_index]):
            fresh = Generator(generator.device)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    return graph


def accelerate(step: Any, compiles: bool) -> Work:
    """The step as one CUDA graph; on a CPU, or where it cannot be captured, the step as it is.

    Args:
        step: a `TrainStep`, on the device of its model.
        compiles: let torch.compile make the kernels, which are captured then.
    """
    if compiles:
        compile_model(step.model)
    if step.device.type != "cuda":
        return step
    try:
        return capture(step)
    except RuntimeError as error:
        first = error  # the end of a capture that failed raises errors of its own
        while first.__context__ is not None:
            first = first.__context__
        print(f"eager steps: the step cannot be captured as a CUDA graph ({reason(first)})")
        return step
