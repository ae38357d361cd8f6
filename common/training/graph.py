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
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Generator, Tensor
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


def warm_up(work: Work) -> "torch.cuda.Stream":
    """A stream of its own on which `work` ran a few times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    return stream


def record(work: Work, stream: "torch.cuda.Stream",
           *generators: Generator) -> "torch.cuda.CUDAGraph":
    """`work` captured on `stream` as a graph that draws anew at each replay.

    Each capture has a stream of its own, since PyTorch frees a stream's cuBLAS workspaces with any
    graph captured on it.

    Args:
        generators: those that `work` draws from, beside the default one.
    """
    graph, home = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    # Before 2.14 a graph knows only the default generator; later it finds those it meets.
    if torch.__version__ < "2.14":
        for generator in generators:
            graph.register_generator_state(generator)
    try:
        # thread_local: a loader's thread may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()
    except RuntimeError:
        # A capture that fails leaves its stream current. Before torch 2.14 it also leaves every
        # generator believing that it is being captured, so that the next random number would
        # raise: each gets the state of a fresh one, and the next epoch seeds it.
        torch.cuda.set_stream(home)
        for generator in (*generators, torch.cuda.default_generators[home.device_index]):
            fresh = Generator(generator.device)
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    return graph


def capture(work: Work, trial: Callable[[Work], float],
            state: Callable[[], Iterable[Tensor]],
            *generators: Generator) -> "torch.cuda.CUDAGraph":
    """`work` as a graph, checked: replayed, it gives what it gives eagerly.

    A capture that went wrong need not raise: a graph that misses a launch, or holds a value that
    should change, replays without a word. So the same `trial` is made with `work` and with the
    replay, from one state, and both have to give the same number.

    Args:
        trial: does its argument a few times from a fixed beginning; returns a number that tells
            right from wrong, such as the loss of two steps, of which the second sees what the
            first has updated.
        state: every tensor that `work` changes. All are afterwards as they were before.

    Raises:
        RuntimeError: it cannot be captured, or its graph does something else.
    """
    # By identity: the graph will read and write these very tensors.
    before = {id(tensor): tensor.detach().clone() for tensor in state()}

    @torch.no_grad()
    def restore() -> None:
        """Put every value back in place, since a graph knows only addresses."""
        for tensor in state():
            if id(tensor) in before:
                tensor.copy_(before[id(tensor)])
            else:
                tensor.zero_()  # what an optimiser made since then begins at zero

    try:
        stream = warm_up(lambda: trial(work))
        restore()
        # Now, not after the capture, when the graph holds a second set of activations.
        eager = trial(work)
        restore()
        graph = record(work, stream, *generators)
        replayed = trial(graph.replay)
    finally:
        restore()
    if not math.isclose(eager, replayed, rel_tol=TOLERANCE):
        raise RuntimeError(f"replayed it gives {replayed:.5f}, eagerly {eager:.5f}")
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
        return capture(step, step.trial, step.state, step.generator).replay
    except RuntimeError as error:
        first = error  # the end of a capture that failed raises errors of its own
        while first.__context__ is not None:
            first = first.__context__
        print(f"eager steps: the step cannot be captured as a CUDA graph ({reason(first)})")
        return step
